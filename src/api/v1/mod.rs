//! Version 1, one file a room. Handlers read a request, ask one use case, and reply.

pub mod actions;
pub mod agents;
pub mod create_run;
pub mod fork;
pub mod run_events;
pub mod runs;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;

/// Every route under `/v1`.
pub fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(agents::create_agent, agents::list_agents))
        .routes(routes!(agents::get_agent, agents::update_agent, agents::archive_agent))
        .routes(routes!(agents::list_agent_versions))
        .routes(routes!(create_run::create_run))
        .routes(routes!(runs::list_runs))
        .routes(routes!(runs::get_run, runs::delete_run))
        .routes(routes!(runs::cancel_run))
        .routes(routes!(fork::fork_run))
        .routes(routes!(actions::post_tool_result))
        .routes(routes!(actions::decide_approval))
        .routes(routes!(actions::list_approvals))
        .routes(routes!(actions::steer_run))
        .routes(routes!(run_events::stream_run_events))
        .routes(routes!(run_events::list_run_log))
        .routes(routes!(run_events::list_run_steps))
}
