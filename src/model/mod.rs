//! The words of the system as types: pure, without I/O, SQL or a clock.

mod agent;
mod capability;
mod event;
mod ids;
mod issue;
mod receipt;
mod task;
mod text;
mod traceparent;
mod transition;

pub use agent::{Agent, AgentStatus, Host, HostAgent, HostAgentId, HostCheck, HostStatus};
pub use capability::{
    CapabilitySet, InvalidCapability, MAX_CAPABILITIES, priority_from_labels, requirement_of_label,
};
pub use event::{Actor, Event, EventType};
pub use ids::{AgentId, InvalidAgentId, Lease, SessionId, TaskId, TaskRef};
pub use issue::{Change, Decision, IssueState, TaskView, decide};
pub use receipt::{Artifact, Receipt, ReceiptStatus, StoredReceipt, Usage};
pub(crate) use task::words;
pub use task::{
    ExecutionMode, Note, Priority, Repo, Source, Status, Task, UnknownWord, branch_name,
};
pub use text::{InvalidText, check_text, clean_text};
pub use traceparent::{InvalidTraceparent, Traceparent};
pub use transition::{TRANSITIONS, may};
