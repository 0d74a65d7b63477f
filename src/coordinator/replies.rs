//! Replies that hand out tasks and are still being written: such a task is not yet one that its agent could list.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::model::{Lease, TaskId};

/// The leases that stand in them.
#[derive(Debug, Clone, Default)]
pub struct Replies {
    leases: Arc<Mutex<BTreeMap<(TaskId, Lease), usize>>>,
}

impl Replies {
    /// A reply with this lease is being written until what is returned is dropped.
    pub fn open(&self, task_id: TaskId, lease: Lease) -> Reply {
        *self.lock().entry((task_id, lease)).or_default() += 1;
        Reply { replies: self.clone(), task_id, lease }
    }

    /// Whether one with this lease is.
    pub fn contains(&self, task_id: TaskId, lease: Lease) -> bool {
        self.lock().contains_key(&(task_id, lease))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(TaskId, Lease), usize>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One lease in one reply.
#[derive(Debug)]
pub struct Reply {
    replies: Replies,
    task_id: TaskId,
    lease: Lease,
}

impl Drop for Reply {
    fn drop(&mut self) {
        let mut leases = self.replies.lock();
        if let Some(count) = leases.get_mut(&(self.task_id, self.lease)) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&(self.task_id, self.lease));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_in_a_reply_until_the_last_one_is_written() {
        let replies = Replies::default();
        let (task, lease) = (TaskId(uuid::Uuid::from_u128(1)), Lease(1));
        let first = replies.open(task, lease);
        let again = replies.open(task, lease);
        drop(first);
        assert!(replies.contains(task, lease) && !replies.contains(task, Lease(2)));
        drop(again);
        assert!(!replies.contains(task, lease));
    }
}
