//! Which fields an answer always has. The derive takes every `Option` for one that may be missing;
//! in our answers it is there and null, unless it is named here.

use utoipa::openapi::{Components, RefOr, Schema};

/// Types that only answers have, with the fields that may be left out.
const ANSWERS: [(&str, &[&str]); 22] = [
    ("Run", &["input", "result", "steps"]),
    ("RunError", &[]),
    ("RunResult", &[]),
    ("RequiredAction", &[]),
    ("Step", &[]),
    ("StepCall", &["child_run_id"]),
    ("OpenApproval", &[]),
    ("SteeringTaken", &[]),
    ("Conversation", &[]),
    ("Message", &["tool_calls", "call_id", "tool", "is_error", "run_id"]),
    ("MessageCall", &[]),
    ("Completion", &[]),
    ("Heartbeat", &[]),
    ("Usage", &[]),
    ("AgentList", &[]),
    ("AgentVersionList", &[]),
    ("RunList", &[]),
    ("ApprovalList", &[]),
    ("ConversationList", &[]),
    ("MessageList", &[]),
    ("StepList", &[]),
    ("Health", &[]),
];

/// Marks them.
pub fn mark(components: &mut Components) {
    for (name, may_be_left_out) in ANSWERS {
        let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name) else {
            continue;
        };
        let always = object.properties.keys().filter(|f| !may_be_left_out.contains(&f.as_str()));
        object.required = always.cloned().collect();
    }
}
