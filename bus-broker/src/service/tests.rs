//! One start for many, and an outcome for each who waits.

use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use bus_core::{Limits, OwnOptions};

use super::*;

#[derive(Debug, Default)]
struct Recorder {
    starts: Mutex<Vec<u64>>,
    arrived: Mutex<Vec<u64>>,
    refuses: AtomicBool,
}

impl Starter for Recorder {
    fn start(&self, start: u64, _: &ServiceFile) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.starts.lock().unwrap().push(start);
        Ok(())
    }

    fn arrived(&self, start: u64) {
        self.arrived.lock().unwrap().push(start);
    }
}

#[derive(Default)]
struct Rings(AtomicUsize);

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    bus: Bus,
    services: Services,
    starter: Arc<Recorder>,
    rings: Arc<Rings>,
    name: GroupName,
    id: NameId,
}

impl Bench {
    fn new(queue: u16) -> Self {
        let bus = Bus::new(Limits::default(), 7).unwrap();
        let name: GroupName = "org.example.Clock".parse().unwrap();
        let text = format!("unit = \"clock.service\"\nqueue = {queue}\n");
        let file = ServiceFile::from_toml(name.clone(), &text, "s.toml".as_ref()).unwrap();
        let services = Services::with(BTreeMap::from([(name.clone(), Arc::new(file))]));
        let starter = Arc::new(Recorder::default());
        services.set_starter(Arc::clone(&starter) as Arc<dyn Starter>);
        let id = services.id_of(&bus, &name).expect("it is a service");
        Self { bus, services, starter, rings: Arc::default(), name, id }
    }

    fn ask(&self) -> Asked {
        self.ask_until(None)
    }

    fn ask_until(&self, until: Option<Instant>) -> Asked {
        let waker = Waker::from(Arc::clone(&self.rings));
        self.services.ask(&self.bus, self.id, Whose::default, || until, &waker)
    }

    fn waits(&self) -> Arc<Wait> {
        match self.ask() {
            Asked::Wait(wait) => wait,
            other => panic!("{other:?}"),
        }
    }

    fn starts(&self) -> usize {
        self.starter.starts.lock().unwrap().len()
    }
}

#[test]
fn many_who_send_start_it_once_and_all_go_on_when_it_is_there() {
    let bench = Bench::new(8);
    let waits: Vec<_> = (0..5).map(|_| bench.waits()).collect();
    assert_eq!(bench.starts(), 1);
    assert!(waits.iter().all(|wait| wait.outcome().is_none()));
    let owner = bench.bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
    let claimed = owner.own_name(&bench.name, OwnOptions::default()).unwrap();
    assert_eq!(claimed.name, bench.id, "it is the name that was sent to");
    bench.services.owned(claimed.name);
    assert!(waits.iter().all(|wait| wait.outcome() == Some(Ok(()))));
    assert_eq!(bench.rings.0.load(Ordering::Relaxed), 5);
    assert_eq!(*bench.starter.arrived.lock().unwrap(), [1]);
    assert!(matches!(bench.ask(), Asked::Go));
    drop(owner);
    let _again = bench.waits();
    assert_eq!(bench.starts(), 2, "once it is gone it is started again");
}

#[test]
fn who_waits_is_told_why_it_has_not_started_and_the_next_tries_again() {
    let bench = Bench::new(8);
    let wait = bench.waits();
    bench.services.ended(7, "another start");
    assert_eq!(wait.outcome(), None);
    bench.services.ended(1, "it ended with status 3");
    let why = wait.outcome().expect("told").expect_err("no owner");
    let expected = "service org.example.Clock has not started: it ended with status 3";
    assert_eq!(why, NotStarted::Failed(expected.into()));
    let wait = bench.waits();
    bench.services.starter_ended();
    assert!(wait.outcome().is_some_and(|outcome| outcome.is_err()));
}

#[test]
fn a_request_waits_no_longer_than_its_deadline() {
    let bench = Bench::new(8);
    let now = Instant::now();
    assert_eq!(bench.services.expire(now), None);
    let Asked::Wait(first) = bench.ask_until(Some(now)) else { panic!("it waits") };
    let later = now + std::time::Duration::from_secs(1);
    let Asked::Wait(second) = bench.ask_until(Some(later)) else { panic!("it waits") };
    let _endless = bench.waits();
    assert_eq!(bench.services.expire(now), Some(later));
    assert_eq!(first.outcome(), Some(Err(NotStarted::TimedOut)));
    assert_eq!(second.outcome(), None);
    assert_eq!(bench.services.expire(later), None);
    assert_eq!(second.outcome(), Some(Err(NotStarted::TimedOut)));
    assert_eq!(bench.starts(), 1, "the start goes on");
}

#[test]
fn g8_so_many_wait_and_no_more() {
    let bench = Bench::new(2);
    let first = bench.waits();
    let _second = bench.waits();
    assert!(matches!(bench.ask(), Asked::Failed(text) if text.contains("2 sends wait")));
    drop(first);
    let _third = bench.waits();
}

#[test]
fn a_starter_that_cannot_is_told_at_once() {
    let bench = Bench::new(2);
    bench.starter.refuses.store(true, Ordering::Relaxed);
    assert!(matches!(bench.ask(), Asked::Failed(_)));
    bench.starter.refuses.store(false, Ordering::Relaxed);
    let _wait = bench.waits();
}

#[test]
fn what_is_no_service_is_left_to_the_bus() {
    let bench = Bench::new(2);
    assert_eq!(bench.services.id_of(&bench.bus, &"org.other".parse().unwrap()), None);
    bench.services.replace(BTreeMap::new());
    assert!(matches!(bench.ask(), Asked::Go));
}
