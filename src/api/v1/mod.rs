//! Version 1, one file a room. Handlers read a request, ask one use case, and reply.

pub mod actions;
pub mod agents;
pub mod conversation_events;
pub mod conversations;
pub mod create_run;
pub mod fork;
pub mod messages;
pub mod run_events;
pub mod runs;
pub mod turns;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;

/// Every route under `/v1`.
pub fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(agents::create_agent, agents::list_agents))
        .routes(routes!(agents::get_agent, agents::update_agent, agents::archive_agent))
        .routes(routes!(agents::list_agent_versions))
        .routes(routes!(conversations::create_conversation, conversations::list_conversations))
        .routes(routes!(
            conversations::get_conversation,
            conversations::update_conversation,
            conversations::delete_conversation
        ))
        .routes(routes!(conversations::close_conversation))
        .routes(routes!(conversations::keep_conversation))
        .routes(routes!(messages::post_message, messages::list_messages))
        .routes(routes!(turns::create_conversation_run))
        .routes(routes!(turns::complete_conversation))
        .routes(routes!(turns::post_conversation_tool_result))
        .routes(routes!(conversation_events::stream_conversation_events))
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
