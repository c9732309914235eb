//! What one end of a connection still has to send, and what it may have to send again.
//!
//! Frames wait in the *queue*, which is bounded, so that whoever sends more than the other end
//! reads has to wait. Once written they move to the *backup*, until it is full. After a lost
//! connection was made again, the other end says how many frames it has got, and what it lacks
//! goes from the backup back to the head of the queue: sent again like anything else.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Closed;

/// Bytes that may wait; one frame may always, however long.
const QUEUE: usize = 1024 * 1024;
/// Bytes by which each frame counts for more than its content.
const OVERHEAD: usize = 64;

/// The other end lacks frames that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("messages were lost that are no longer kept")]
pub(super) struct Lost;

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Held by the task that waits for room: first come, first served. Else one that always has
    /// more to send would be there first each time.
    turn: tokio::sync::Mutex<()>,
    /// There is room in the queue, for tasks and for threads.
    room: Notify,
    room_for_threads: Condvar,
    /// There is something in the queue.
    work: Notify,
    /// All that was taken has been written.
    flushed: Notify,
    closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Bytes>,
    queued: usize,
    backup: VecDeque<(u64, Bytes)>,
    kept: usize,
    /// Bytes that may be kept.
    keep: usize,
    /// How many frames the other end will have counted when all that was written has arrived.
    written: u64,
    /// The count of the last frame that is no longer kept.
    dropped: u64,
    /// Frames that were ever taken, and written by whoever took them.
    passed: Passed,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Passed {
    taken: u64,
    flushed: u64,
}

impl Outbox {
    /// An outbox after `written` frames, which keeps up to `keep` bytes for a reconnection, and the
    /// last frame whatever its length; with 0 nothing at all.
    pub(super) fn new(written: u64, keep: usize) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued: 0,
                backup: VecDeque::new(),
                kept: 0,
                keep,
                written,
                dropped: written,
                passed: Passed::default(),
                is_closed: false,
            }),
            turn: tokio::sync::Mutex::default(),
            room: Notify::new(),
            room_for_threads: Condvar::new(),
            work: Notify::new(),
            flushed: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; waits for room, in the order of the first polls.
    pub(super) async fn push(&self, frame: Bytes) -> Result<(), Closed> {
        let _turn = self.turn.lock().await;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Before looking: what happens between looking and waiting must not be missed.
            room.as_mut().enable();
            match self.try_push(&frame) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed) => return Err(Closed),
                Err(Refused::Full) => room.await,
            }
        }
    }

    /// Queues a frame; blocks the thread until there is room.
    pub(super) fn push_blocking(&self, frame: &Bytes) -> Result<(), Closed> {
        let mut state = self.state();
        loop {
            match state.push(frame) {
                Ok(()) => break,
                Err(Refused::Closed) => return Err(Closed),
                Err(Refused::Full) => {
                    state =
                        self.room_for_threads.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Queues a frame if there is room.
    pub(super) fn try_push(&self, frame: &Bytes) -> Result<(), Refused> {
        self.state().push(frame)?;
        self.work.notify_one();
        Ok(())
    }

    /// Waits until something is queued; `false` when nothing will be any more. For one task at a time,
    /// which has written by then what it took before.
    pub(super) async fn ready(&self) -> bool {
        loop {
            {
                let mut state = self.state();
                if state.passed.flushed < state.passed.taken {
                    state.passed.flushed = state.passed.taken;
                    self.flushed.notify_waiters();
                }
                if !state.queue.is_empty() || state.is_closed {
                    return !state.queue.is_empty();
                }
            }
            self.work.notified().await;
        }
    }

    /// Waits until what is queued now has been written. Only where nothing is kept for a reconnection,
    /// which would have some of it written again.
    pub(super) async fn flushed(&self) -> Result<(), Closed> {
        let until = {
            let state = self.state();
            state.passed.taken + state.queue.len() as u64
        };
        loop {
            let flushed = self.flushed.notified();
            tokio::pin!(flushed);
            // Before looking, as in `push`.
            flushed.as_mut().enable();
            let is_closed = self.is_closed();
            // After that look: what was written counts, also if the other end went away with it.
            if self.state().passed.flushed >= until {
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            tokio::select! {
                () = flushed => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    /// Takes frames out of the queue, in their order, up to about `limit` bytes; they count as written.
    pub(super) fn take(&self, limit: usize) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut taken = 0;
        let mut state = self.state();
        while taken < limit {
            let Some(frame) = state.queue.pop_front() else { break };
            state.queued -= frame.len() + OVERHEAD;
            taken += frame.len();
            state.written += 1;
            state.passed.taken += 1;
            let written = state.written;
            state.back_up(written, frame.clone());
            frames.push(frame);
        }
        let has_room = state.queued < QUEUE;
        drop(state);
        if has_room && !frames.is_empty() {
            self.room.notify_waiters();
            self.room_for_threads.notify_all();
        }
        frames
    }

    /// Counts a frame that the other end counts, but does not need again.
    pub(super) fn count_heartbeat(&self) {
        self.state().written += 1;
    }

    /// How many frames the other end will have counted, and how many are kept.
    pub(super) fn counters(&self) -> (u64, u64) {
        let state = self.state();
        (state.written, state.backup.len() as u64)
    }

    /// Goes on where the other end lost the connection: what it lacks is queued again.
    ///
    /// # Errors
    ///
    /// Some of that is no longer kept, or the other end claims more than was written.
    pub(super) fn resume(&self, received: u64) -> Result<(), Lost> {
        let mut state = self.state();
        if received < state.dropped || received > state.written {
            return Err(Lost);
        }
        while let Some((count, frame)) = state.backup.pop_back() {
            if count <= received {
                state.backup.push_back((count, frame));
                break;
            }
            state.kept -= frame.len() + OVERHEAD;
            state.queued += frame.len() + OVERHEAD;
            state.queue.push_front(frame);
        }
        // What the other end has needs no backup; what it lacks is in the queue.
        state.backup.clear();
        state.kept = 0;
        state.written = received;
        state.dropped = received;
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Closes for good: nothing more is taken, and everybody who waits is woken.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.queue.clear();
        state.backup.clear();
        (state.queued, state.kept) = (0, 0);
        drop(state);
        self.closed.cancel();
        self.work.notify_one();
        self.room.notify_waiters();
        self.room_for_threads.notify_all();
    }

    /// Takes nothing more, but keeps what is queued to be written.
    pub(super) fn finish(&self) {
        self.state().is_closed = true;
        self.work.notify_one();
        self.room.notify_waiters();
        self.room_for_threads.notify_all();
    }

    /// Waits for [`Self::close`].
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

impl State {
    fn push(&mut self, frame: &Bytes) -> Result<(), Refused> {
        if self.is_closed {
            return Err(Refused::Closed);
        }
        if self.queued >= QUEUE {
            return Err(Refused::Full);
        }
        self.queued += frame.len() + OVERHEAD;
        self.queue.push_back(frame.clone());
        Ok(())
    }

    fn back_up(&mut self, count: u64, frame: Bytes) {
        let last = frame.len() + OVERHEAD;
        self.kept += last;
        self.backup.push_back((count, frame));
        if self.keep == 0 {
            self.backup.clear();
            (self.kept, self.dropped) = (0, count);
            return;
        }
        // The last one does not count: it is the one on its way, and may be a whole file.
        while self.kept > self.keep.saturating_add(last) {
            let Some((count, frame)) = self.backup.pop_front() else { break };
            self.kept -= frame.len() + OVERHEAD;
            self.dropped = count;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_was_written_before_the_end_counts_as_written() {
        // Both may be found at the same time, and in either order.
        for _ in 0..64 {
            let outbox = Outbox::new(0, 0);
            outbox.push(Bytes::from_static(b"a")).await.unwrap();
            let mut flushed = Box::pin(outbox.flushed());
            assert!(flushed.as_mut().now_or_never().is_none());
            assert_eq!(outbox.take(1).len(), 1);
            assert!(flushed.as_mut().now_or_never().is_none());
            // Its writer is back.
            assert!(outbox.ready().now_or_never().is_none());
            outbox.close();
            assert!(flushed.await.is_ok());
        }
    }

    #[tokio::test]
    async fn what_was_not_written_at_the_end_never_is() {
        let outbox = Outbox::new(0, 0);
        outbox.push(Bytes::from_static(b"a")).await.unwrap();
        let mut flushed = Box::pin(outbox.flushed());
        assert!(flushed.as_mut().now_or_never().is_none());
        outbox.take(1);
        outbox.close();
        assert!(flushed.await.is_err());
    }
}
