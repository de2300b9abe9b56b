//! Worker threads that share connections to the bus.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bus_client::{EmbeddedBroker, Event, ReceiveError, Worker, Workers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn text(event: Event) -> String {
    event.into_message().unwrap().text().unwrap().to_owned()
}

#[track_caller]
fn next(worker: &Worker) -> String {
    text(worker.receive_deadline(PATIENCE).unwrap().expect("something in time"))
}

fn workers(broker: &EmbeddedBroker, connections: usize, count: usize) -> (Workers, Vec<Worker>) {
    let connections: Vec<_> = (0..connections).map(|_| broker.connect().unwrap()).collect();
    let workers = Workers::new(connections).unwrap();
    let each = (0..count).map(|_| workers.worker().unwrap()).collect();
    (workers, each)
}

#[test]
fn each_message_is_taken_once_by_whichever_worker_is_free() {
    const COUNT: usize = 2000;
    let broker = EmbeddedBroker::start().unwrap();
    let (workers, each) = workers(&broker, 2, 4);
    // Of two connections one is a member of each: of the same group, both would get all.
    let joined: Vec<_> = ["jobs.one", "jobs.two"].map(|name| workers.join(name).unwrap()).into();
    let sender = broker.connect().unwrap();
    let count = AtomicUsize::new(0);
    thread::scope(|scope| {
        let count = &count;
        let threads: Vec<_> = each
            .into_iter()
            .map(|worker| {
                scope.spawn(move || {
                    let mut taken = Vec::new();
                    loop {
                        match next(&worker).as_str() {
                            "end" => return taken,
                            job => {
                                taken.push(job.to_owned());
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                })
            })
            .collect();
        for n in 0..COUNT {
            let group = ["jobs.one", "jobs.two"][n % 2];
            sender.group(group).unwrap().send(n.to_string()).unwrap();
        }
        // Between two connections there is no order, so an end would overtake the other's jobs. A
        // worker that waits in vain ends with a panic.
        while count.load(Ordering::Relaxed) < COUNT && !threads.iter().any(|t| t.is_finished()) {
            thread::yield_now();
        }
        let ends = threads.len();
        // One at a time, so that no worker sits on another's.
        let mut ended = 0;
        while threads.iter().any(|thread| !thread.is_finished()) {
            let finished = threads.iter().filter(|thread| thread.is_finished()).count();
            if ended < ends && ended <= finished {
                sender.group("jobs.one").unwrap().send("end").unwrap();
                ended += 1;
            }
            thread::yield_now();
        }
        let taken: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let all: BTreeSet<_> = taken.iter().flatten().collect();
        assert_eq!(taken.iter().map(Vec::len).sum::<usize>(), COUNT, "none twice");
        assert_eq!(all.len(), COUNT, "and none lost");
    });
    drop(joined);
}

#[test]
fn workers_take_turns_each_pollable_and_a_disabled_one_leaves_its_events() {
    let broker = EmbeddedBroker::start().unwrap();
    let (workers, each) = workers(&broker, 1, 2);
    let _member = workers.join("jobs").unwrap();
    let jobs = broker.connect().unwrap().group("jobs").unwrap();
    jobs.send("one").unwrap();
    let mut fds = [PollFd::new(&each[0], PollFlags::IN)];
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1);
    assert!(each[1].try_receive().unwrap().is_none(), "it is the first one's turn");
    each[0].disable_receive();
    assert_eq!(next(&each[1]), "one", "moved");
    jobs.send("two").unwrap();
    assert_eq!(next(&each[1]), "two");
    each[0].enable_receive();
    jobs.send("three").unwrap();
    assert_eq!(next(&each[0]), "three");
}

#[test]
fn workers_send_on_connections_of_their_own() {
    let broker = EmbeddedBroker::start().unwrap();
    let (_workers, each) = workers(&broker, 2, 4);
    let ids: Vec<_> = each.iter().map(|worker| worker.bus().endpoint_id()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 2);
    for id in &ids {
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 2, "spread evenly");
    }
}

#[test]
fn without_connections_that_live_workers_are_told() {
    let broker = EmbeddedBroker::start().unwrap();
    let (workers, each) = workers(&broker, 2, 2);
    let _member = workers.join("jobs").unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = each.iter().map(|worker| scope.spawn(|| worker.receive())).collect();
        drop(broker);
        for thread in waiting {
            let gone = thread.join().unwrap();
            assert!(matches!(gone, Err(ReceiveError::BrokerGone(_))), "{gone:?}");
        }
    });
}
