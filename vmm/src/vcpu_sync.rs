//! Synchronizes the vCPU threads of a VM: the order in which they start, a barrier, and the flag by which they stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by all vCPU threads of a VM.
#[derive(Debug)]
pub struct VcpuSync {
    stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// vCPUs below this index may start.
    may_start: u32,
    /// vCPUs that have not reached the barrier yet, nor ended.
    missing: Vec<bool>,
}

impl VcpuSync {
    /// For `vcpus` threads: all may start at once, or one after the other.
    pub fn new(vcpus: u32, one_by_one: bool) -> Self {
        let may_start = if one_by_one { 1 } else { vcpus };
        let missing = vec![true; vcpus as usize];
        Self {
            stopped: AtomicBool::new(false),
            state: Mutex::new(State { may_start, missing }),
            changed: Condvar::new(),
        }
    }

    /// Whether every thread shall end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Tells every thread to end; those that wait here wake up.
    pub fn stop(&self) {
        let _state = self.lock();
        self.stopped.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until vCPU `id` may start, or all shall stop.
    pub fn wait_to_start(&self, id: u32) {
        self.wait_while(self.lock(), |state| state.may_start <= id);
    }

    /// vCPU `id` has reached the VMM for the first time: its successor may start.
    pub fn let_next_start(&self, id: u32) {
        let mut state = self.lock();
        state.may_start = state.may_start.max(id + 2);
        self.changed.notify_all();
    }

    /// Waits until every vCPU is at the barrier or has ended, or all shall stop.
    pub fn barrier(&self, id: u32) {
        let state = self.mark(id);
        self.wait_while(state, |state| state.missing.contains(&true));
    }

    /// vCPU `id` has ended: nobody waits for it any longer.
    pub fn leave(&self, id: u32) {
        drop(self.mark(id));
        self.let_next_start(id);
    }

    fn mark(&self, id: u32) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.missing[id as usize] = false;
        self.changed.notify_all();
        state
    }

    fn wait_while(&self, state: MutexGuard<'_, State>, condition: impl Fn(&State) -> bool) {
        let wait = |state: &mut State| condition(state) && !self.is_stopped();
        drop(self.changed.wait_while(state, wait).unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    #[test]
    fn threads_start_in_order_and_meet_at_the_barrier() {
        let (sync, started) = (VcpuSync::new(3, true), AtomicU32::new(0));
        thread::scope(|scope| {
            for id in [2, 1, 0] {
                let (sync, started) = (&sync, &started);
                scope.spawn(move || {
                    sync.wait_to_start(id);
                    assert_eq!(started.fetch_add(1, Ordering::SeqCst), id);
                    sync.let_next_start(id);
                    sync.barrier(id);
                    assert_eq!(started.load(Ordering::SeqCst), 3);
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_the_dead() {
        let sync = VcpuSync::new(2, true);
        sync.leave(0);
        sync.wait_to_start(1);
        sync.barrier(1);
    }

    #[test]
    fn stop_wakes_whoever_waits() {
        let sync = VcpuSync::new(2, true);
        thread::scope(|scope| {
            scope.spawn(|| sync.wait_to_start(1));
            scope.spawn(|| sync.barrier(0));
            sync.stop();
        });
        assert!(sync.is_stopped());
    }
}
