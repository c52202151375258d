//! Families at their largest.

use serde_json::json;
use stepwell::clock::Clock;
use stepwell::domain::limits;
use stepwell::domain::run::RunStatus;
use stepwell::store::SharedStore;

use super::stage::Stage;
use crate::store::fixtures::{add_agent, agent, at, create, new_run};
use crate::support::databases::conformance;

conformance!(a_call_for_which_its_family_has_no_room_is_a_failed_call_and_the_run_goes_on,);

async fn a_call_for_which_its_family_has_no_room_is_a_failed_call_and_the_run_goes_on(
    store: SharedStore,
) {
    let stage = Stage::set(&store, &Clock::manual(at(0))).await;
    add_agent(&store, "a").await;
    let mut leaf = agent("leaf");
    leaf.settings = serde_json::from_value(json!({"model": "builtin/echo"})).expect("settings");
    store.insert_agent(crate::store::fixtures::HOME, &leaf, None).await.expect("an agent");
    // They wait for leave, and meanwhile the family grows: there is room for one of the two.
    let tool = |name: &str| json!({"type": "agent", "name": name, "agent_id": "leaf", "requires_approval": true});
    let run = stage.parked(&store, json!([tool("one"), tool("two")])).await;
    let run_id = run.row.run_id;
    let room = u32::try_from(limits::MAX_FAMILY).expect("a number") - 2;
    let others = (0..room).map(|n| {
        let mut new = new_run(n);
        new.row.due_at = None;
        (new.row.parent_run_id, new.row.root_run_id) = (Some(run_id), Some(run_id));
        new
    });
    create(&store, others.collect()).await;
    for action in &run.actions {
        stage.decide(run_id, action.call_id).await.expect("a decision");
    }
    let run = stage.settled(run_id).await;
    assert_eq!(run.row.status, RunStatus::Completed);
    let log = stage.log_of(&store, run_id).await;
    let of =
        |event: &str| log.iter().filter(|(e, _)| e == event).map(|(_, d)| d).collect::<Vec<_>>();
    assert_eq!((of("tool_call.started").len(), of("tool_call.completed").len()), (2, 1));
    let [failed] = of("tool_call.failed")[..] else { panic!("{log:?}") };
    let told = failed["error"].as_str().expect("words");
    assert!(told.contains("1000 runs work on this task"), "{told}");
    assert_eq!(failed["child_cost_usd"], 0.0, "it cost nothing: {failed}");
    stage.stop().await;
}
