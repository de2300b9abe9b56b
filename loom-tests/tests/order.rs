use crate::given::{bus, endpoint, explore, join, texts};
use bus_core_modelled::MemberFlags;
use loom::thread;

#[test]
fn g2_smoke() {
    explore(|| {
        let bus = bus(4);
        let (a, b, s1, s2) = (
            endpoint(&bus),
            endpoint(&bus),
            endpoint(&bus),
            endpoint(&bus),
        );
        let group = join(&a, "g", MemberFlags::empty());
        join(&b, "g", MemberFlags::empty());
        let mut l1 = s1.lane().unwrap();
        let mut l2 = s2.lane().unwrap();
        let t1 = thread::spawn(move || l1.try_send(group, "x").unwrap());
        let t2 = thread::spawn(move || l2.try_send(group, "y").unwrap());
        t1.join().unwrap();
        t2.join().unwrap();
        let at_a = texts(&mut a.receiver().unwrap());
        let at_b = texts(&mut b.receiver().unwrap());
        assert_eq!(at_a.len(), 2);
        assert_eq!(at_a, at_b);
    });
}
