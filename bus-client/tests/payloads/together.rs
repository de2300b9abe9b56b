//! Messages that are sent together: one copy, read in place by all members.

use bus_client::{Event, Limits, Way};

use super::{PATIENCE, broker, message, pattern};
use std::time::Instant;

/// Given members that read and one that keeps all it gets, when a sender has many short messages ready
/// again and again, then they lie in memory that all read, each is what was sent, in its place, and what is
/// kept stays as it was.
#[test]
fn g2_messages_that_are_ready_together_lie_where_all_members_read_them() {
    let (broker, _dir) = broker(Limits::default());
    let sender = broker.connect().unwrap();
    let readers = [0; 2].map(|_| broker.connect().unwrap());
    let members: Vec<_> = readers.iter().map(|reader| reader.join("short").unwrap()).collect();
    let group = sender.group("short").unwrap();
    let until = Instant::now() + PATIENCE;
    let (mut sent, mut found, mut kept) = (0, 0, Vec::new());
    let mut last = None;
    while found < 5 * ROUND {
        assert!(Instant::now() < until, "{found} of {sent} messages lay apart");
        let first = sent;
        sent += ROUND;
        let corked = sender.cork();
        let sends: Vec<_> =
            (first..sent).map(|number| group.start_send(pattern(number, 500)).unwrap()).collect();
        drop(corked);
        for number in first..sent {
            let [one, other] = readers.each_ref().map(message);
            assert_eq!((one.group(), one.sequence()), (Some("short"), other.sequence()));
            assert!(last < Some(one.sequence()));
            last = Some(one.sequence());
            assert_eq!(one.payload(), pattern(number, 500));
            assert_eq!(one.view().len(), 500);
            assert_eq!(one.way(), other.way());
            if one.way() == Way::Arena {
                found += 1;
                kept.push((number, other));
            }
        }
        for send in sends {
            assert_eq!(send.wait().unwrap().recipients, 2);
        }
    }
    for (number, message) in kept {
        assert_eq!(message.payload(), pattern(number, 500));
        assert!(message.into_payload() == pattern(number, 500));
    }
    assert!(
        readers.iter().all(|reader| !matches!(reader.try_receive(), Ok(Some(Event::Message(_)))))
    );
    drop(members);
}

/// As many as a lane's window takes.
const ROUND: usize = 60;
