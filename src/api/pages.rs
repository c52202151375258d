//! Lists in pages: the parameters that every list takes, and the shape that every list has.

use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::agent::Agent;
use crate::domain::conversation::ConversationView;
use crate::domain::conversation::message::Message;
use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, RunId};
use crate::domain::page::{From, Listed, Order, Page};
use crate::domain::run::{OpenApproval, Run};
use crate::domain::step::Step;

use super::{ApiError, ErrorCode, query};

/// Rows of a page when nothing is said.
const DEFAULT_LIMIT: u32 = 20;
/// Rows of a page at most.
const MAX_LIMIT: u32 = 100;

/// Which page of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many rows to give, 1–100.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<String>,
    /// Rows behind this one: pass the `last_id` of the page before. Not together with `before`.
    #[param(value_type = Option<String>)]
    pub after: Option<String>,
    /// Rows in front of this one: pass the `first_id` of the page after. Not together with `after`.
    #[param(value_type = Option<String>)]
    pub before: Option<String>,
    /// The direction of the list, where it differs from the list's own.
    #[param(value_type = Option<ListOrder>)]
    pub order: Option<String>,
}

/// The direction of a list.
#[derive(Debug, Clone, Copy, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ListOrder {
    /// Smallest or oldest first.
    Asc,
    /// Largest or newest first.
    Desc,
}

impl PageQuery {
    /// The page, for a list whose rows have ids of type `K`.
    ///
    /// # Errors
    /// `validation_failed`, and `invalid_cursor` for an id that is none.
    pub fn page<K: FromStr>(&self, usual: Order) -> Result<Page<K>, ApiError> {
        let must = "must be 1 to 100";
        let limit = query::parse("limit", self.limit.as_deref(), must)?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(query::invalid("limit", must));
        }
        let order = match self.order.as_deref() {
            None => usual,
            Some("asc") => Order::Asc,
            Some("desc") => Order::Desc,
            Some(_) => return Err(query::invalid("order", "must be asc or desc")),
        };
        let from = match (given(self.after.as_deref()), given(self.before.as_deref())) {
            (None, None) => From::Start,
            (Some(after), None) => From::After(cursor("after", after)?),
            (None, Some(before)) => From::Before(cursor("before", before)?),
            (Some(_), Some(_)) => {
                return Err(query::invalid("before", "cannot be given together with after"));
            }
        };
        Ok(Page { limit, from, order })
    }
}

/// An empty cursor is none.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn cursor<K: FromStr>(name: &str, text: &str) -> Result<K, ApiError> {
    text.parse().map_err(|_| {
        let message = format!("{name} is not an id of this list.");
        ApiError::new(ErrorCode::InvalidCursor, message)
    })
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident($row:ty, $id:ty, $of:expr);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Serialize, ToSchema)]
        pub struct $name {
            /// The rows of this page.
            pub data: Vec<$row>,
            /// Whether the list goes on.
            pub has_more: bool,
            /// The id of the first row; null when there is none.
            pub first_id: Option<$id>,
            /// The id of the last row: pass it as `after` to get the next page; null when there is none.
            pub last_id: Option<$id>,
        }

        impl std::convert::From<Listed<$row>> for $name {
            fn from(listed: Listed<$row>) -> Self {
                let id: fn(&$row) -> $id = $of;
                Self {
                    first_id: listed.rows.first().map(id),
                    last_id: listed.rows.last().map(id),
                    has_more: listed.has_more,
                    data: listed.rows,
                }
            }
        }
    )*};
}

lists! {
    /// A page of agents.
    AgentList(Agent, AgentId, |agent| agent.agent_id.clone());
    /// A page of an agent's versions.
    AgentVersionList(Agent, i32, |agent| agent.version);
    /// A page of runs, without `input` and `result`.
    RunList(Run, RunId, |run| run.run_id);
    /// A page of approvals that nobody has decided yet.
    ApprovalList(OpenApproval, CallId, |approval| approval.call_id);
    /// A page of conversations.
    ConversationList(ConversationView, ConversationId, |conversation| conversation.conversation_id);
    /// A page of a conversation's messages.
    MessageList(Message, MessageId, |message| message.message_id);
    /// A page of a run's steps.
    StepList(Step, i32, |step| step.step);
}

/// Cuts a page out of rows that are all in memory, ascending by `id`.
pub fn cut<T>(rows: Vec<T>, page: &Page<i32>, id: impl Fn(&T) -> i32) -> Listed<T> {
    let scan = page.scan();
    let within = |row: &T| {
        scan.above.is_none_or(|above| id(row) > above)
            && scan.below.is_none_or(|below| id(row) < below)
    };
    let mut rows: Vec<T> = rows.into_iter().filter(within).collect();
    if scan.order == Order::Desc {
        rows.reverse();
    }
    rows.truncate(usize::try_from(scan.limit).unwrap_or(usize::MAX));
    page.finish(rows)
}

/// A page of a log, around the exact text of its events.
pub fn log_page(listed: &Listed<Entry>) -> Bytes {
    use std::io::Write as _;
    let size: usize = listed.rows.iter().map(|entry| entry.data.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 80);
    out.extend_from_slice(b"{\"data\":[");
    for (i, entry) in listed.rows.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&entry.data);
    }
    let id = |entry: Option<&Entry>| entry.map_or("null".to_owned(), |e| e.seq.to_string());
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "],\"has_more\":{},\"first_id\":{},\"last_id\":{}}}",
        listed.has_more,
        id(listed.rows.first()),
        id(listed.rows.last())
    );
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventType;

    fn refused(query: &PageQuery) -> ErrorCode {
        query.page::<RunId>(Order::Desc).unwrap_err().code()
    }

    #[test]
    fn wrong_parameters_are_told_apart_from_wrong_cursors() {
        let some = |text: &str| Some(text.to_owned());
        for limit in ["0", "101", "-1", "x", ""] {
            let query = PageQuery { limit: some(limit), ..PageQuery::default() };
            assert_eq!(refused(&query), ErrorCode::ValidationFailed, "{limit:?}");
        }
        let query = PageQuery { after: some("run_x"), ..PageQuery::default() };
        assert_eq!(refused(&query), ErrorCode::InvalidCursor);
        let query = PageQuery { after: some("a"), before: some("b"), ..PageQuery::default() };
        assert_eq!(refused(&query), ErrorCode::ValidationFailed);
        let query = PageQuery { order: some("up"), ..PageQuery::default() };
        assert_eq!(refused(&query), ErrorCode::ValidationFailed);
    }

    #[test]
    fn nothing_said_is_the_list_s_own_order_from_its_start() {
        let page = PageQuery::default().page::<i32>(Order::Asc).unwrap();
        assert_eq!(page, Page { limit: 20, from: From::Start, order: Order::Asc });
    }

    #[test]
    fn rows_in_memory_are_cut_like_rows_in_a_store() {
        let page = |from, order| cut((1..=10).collect(), &Page { limit: 3, from, order }, |i| *i);
        assert_eq!(page(From::After(3), Order::Asc).rows, [4, 5, 6]);
        assert_eq!(page(From::Before(4), Order::Desc).rows, [7, 6, 5]);
        assert!(!page(From::After(7), Order::Asc).has_more);
    }

    #[test]
    fn a_log_page_holds_the_exact_text_of_its_events() {
        let entry = |seq, text: &'static str| Entry {
            seq,
            event_type: EventType::MessageDelta,
            data: Bytes::from_static(text.as_bytes()),
        };
        let rows = vec![entry(3, "{\"seq\":3, \"x\":1.0}"), entry(4, "{\"seq\":4}")];
        let page = log_page(&Listed { rows, has_more: true });
        assert_eq!(
            page,
            "{\"data\":[{\"seq\":3, \"x\":1.0},{\"seq\":4}],\"has_more\":true,\"first_id\":3,\"last_id\":4}"
        );
        let page = log_page(&Listed { rows: vec![], has_more: false });
        assert_eq!(page, "{\"data\":[],\"has_more\":false,\"first_id\":null,\"last_id\":null}");
    }
}
