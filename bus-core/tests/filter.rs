//! Filters against a naive reference: random joins, leaves, changes of filters and messages, and
//! for each message a list of those who want it, made by looking at every member.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bus_core::{
    Attributes, Bus, Condition, Credentials, Delivery, Destination, Draft, Endpoint, Filter,
    FilterProgram, GroupId, JoinOptions, Lane, Limits, MemberFlags, Pattern, Receiver,
};
use proptest::prelude::*;

const ENDPOINTS: usize = 9;

/// A condition, as the reference understands it.
#[derive(Clone, Debug)]
enum Wanted {
    Key(String, bool),
    Operation(String, bool),
    Field(String, String, bool),
    /// The byte at this place of key and payload is there, and not 0.
    Byte(u8),
}

type Filtered = Option<Vec<Vec<Wanted>>>;

#[derive(Clone, Debug)]
struct Said {
    key: Option<String>,
    operation: Option<String>,
    fields: Vec<(String, String)>,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Op {
    Join(usize, Filtered, bool),
    Leave(usize),
    Set(usize, Filtered),
    Send(usize, Said),
}

/// Few letters, so that beginnings are often common.
fn word() -> impl Strategy<Value = String> {
    "[ab.]{0,4}"
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        4 => (word(), any::<bool>()).prop_map(|(key, exact)| Wanted::Key(key, exact)),
        1 => ("[ab]{1,2}", any::<bool>()).prop_map(|(name, exact)| Wanted::Operation(name, exact)),
        2 => ("[mn]", word(), any::<bool>())
            .prop_map(|(name, value, exact)| Wanted::Field(name, value, exact)),
        1 => (0..4_u8).prop_map(Wanted::Byte),
    ]
}

fn filtered() -> impl Strategy<Value = Filtered> {
    let all = prop::collection::vec(wanted(), 1..3);
    prop::option::weighted(0.8, prop::collection::vec(all, 1..4))
}

fn said() -> impl Strategy<Value = Said> {
    let fields = (prop::option::of(word()), prop::option::of(word()));
    (
        prop::option::weighted(0.8, word()),
        prop::option::of("[ab]{1,2}"),
        fields,
        prop::collection::vec(0..2_u8, 0..4),
    )
        .prop_map(|(key, operation, (m, n), payload)| {
            let named = |name: &str, value: Option<String>| Some((name.to_owned(), value?));
            let fields = named("m", m).into_iter().chain(named("n", n)).collect();
            Said { key, operation, fields, payload }
        })
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..ENDPOINTS;
    prop_oneof![
        3 => (who.clone(), filtered(), any::<bool>()).prop_map(|(e, f, l)| Op::Join(e, f, l)),
        1 => who.clone().prop_map(Op::Leave),
        2 => (who.clone(), filtered()).prop_map(|(e, f)| Op::Set(e, f)),
        6 => (who, said()).prop_map(|(e, said)| Op::Send(e, said)),
    ]
}

fn real(filtered: &Filtered) -> Option<Filter> {
    let condition = |wanted: &Wanted| {
        let pattern = |text: &str, exact| {
            if exact { Pattern::exactly(text) } else { Pattern::prefix(text) }
        };
        match wanted {
            Wanted::Key(key, exact) => Condition::Key(pattern(key, *exact)),
            Wanted::Operation(name, exact) => Condition::Operation(pattern(name, *exact)),
            Wanted::Field(name, value, exact) => {
                Condition::Field { name: name.clone(), value: pattern(value, *exact) }
            }
            Wanted::Byte(at) => {
                // r6 = r1; r0 = the byte at `at`; exit
                let mut code = [0; 24];
                code[..2].copy_from_slice(&[0xbf, 0x16]);
                (code[8], code[12], code[16]) = (0x30, *at, 0x95);
                Condition::Program(FilterProgram::load(&code).unwrap())
            }
        }
    };
    let alternatives = filtered.as_ref()?.iter().map(|all| all.iter().map(condition).collect());
    Some(Filter::new(alternatives).unwrap())
}

fn wants(filtered: &Filtered, said: &Said) -> bool {
    let fits = |given: &str, text: &str, exact: bool| {
        if exact { given == text } else { given.starts_with(text) }
    };
    let holds = |wanted: &Wanted| match wanted {
        Wanted::Key(text, exact) => said.key.as_ref().is_some_and(|key| fits(key, text, *exact)),
        Wanted::Operation(text, exact) => {
            said.operation.as_ref().is_some_and(|name| fits(name, text, *exact))
        }
        Wanted::Field(name, text, exact) => {
            said.fields.iter().any(|(n, value)| n == name && fits(value, text, *exact))
        }
        Wanted::Byte(at) => {
            let key = said.key.as_deref().unwrap_or_default();
            let seen = [key.as_bytes(), &said.payload].concat();
            seen.get(usize::from(*at)).is_some_and(|byte| *byte != 0)
        }
    };
    filtered.as_ref().is_none_or(|any| any.iter().any(|all| all.iter().all(holds)))
}

struct Party {
    endpoint: Endpoint,
    lane: Lane,
    reader: Receiver,
    /// While it is a member: its filter, and whether it hears itself.
    member: Option<(Filtered, bool)>,
    expected: Vec<u64>,
}

struct World {
    parties: Vec<Party>,
    group: GroupId,
}

impl World {
    fn new() -> Self {
        let bus = Bus::new(Limits::default(), 1).unwrap();
        let party = |_| {
            let endpoint = bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
            Party {
                lane: endpoint.lane().unwrap(),
                reader: endpoint.receiver().unwrap(),
                endpoint,
                member: None,
                expected: Vec::new(),
            }
        };
        let parties: Vec<Party> = (0..ENDPOINTS).map(party).collect();
        let (group, _) = parties[0].endpoint.create_group(&"g".parse().unwrap()).unwrap();
        Self { parties, group }
    }

    fn apply(&mut self, op: Op) {
        let group = self.group;
        match op {
            Op::Join(e, filtered, loopback) => {
                let party = &mut self.parties[e];
                let flags = if loopback { MemberFlags::LOOPBACK } else { MemberFlags::empty() };
                let options =
                    JoinOptions { flags, filter: real(&filtered), ..JoinOptions::default() };
                let joined = party.endpoint.join(&"g".parse().unwrap(), options);
                assert_eq!(joined.is_ok(), party.member.is_none());
                if joined.is_ok() {
                    party.member = Some((filtered, loopback));
                }
            }
            Op::Leave(e) => {
                let party = &mut self.parties[e];
                assert_eq!(party.endpoint.leave(group).is_ok(), party.member.take().is_some());
            }
            Op::Set(e, filtered) => {
                let party = &mut self.parties[e];
                let set = party.endpoint.set_filter(group, real(&filtered));
                assert_eq!(set.is_ok(), party.member.is_some());
                if let Some((current, _)) = &mut party.member {
                    *current = filtered;
                }
            }
            Op::Send(e, said) => self.send(e, &said),
        }
    }

    fn send(&mut self, from: usize, said: &Said) {
        let mut builder = Attributes::builder();
        if let Some(key) = &said.key {
            builder = builder.key(key);
        }
        if let Some(operation) = &said.operation {
            builder = builder.operation(operation);
        }
        for (name, value) in &said.fields {
            builder = builder.field(name, value);
        }
        let attributes = builder.build().unwrap();
        let draft = Draft { attributes: attributes.clone(), ..Draft::from(&said.payload[..]) };
        let to = Destination::Group(self.group);
        let receipt = self.parties[from].lane.try_send(to, draft).unwrap();
        let mut recipients = 0;
        for (at, party) in self.parties.iter_mut().enumerate() {
            let Some((filtered, loopback)) = &party.member else {
                continue;
            };
            let wanted = wants(filtered, said);
            let filter = real(filtered);
            let accepts = filter.is_none_or(|filter| filter.accepts(&attributes, &said.payload));
            assert_eq!(accepts, wanted, "{filtered:?} of {said:?}");
            if wanted && (at != from || *loopback) {
                recipients += 1;
                party.expected.push(receipt.sequence.get());
            }
        }
        assert_eq!(receipt.recipients, recipients);
    }

    fn assert_queues(&mut self) {
        for party in &mut self.parties {
            let found: Vec<u64> = std::iter::from_fn(|| party.reader.try_receive().ok())
                .map(|delivery| match delivery {
                    Delivery::Message { message, .. } => message.sequence().get(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(found, std::mem::take(&mut party.expected));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn g4_each_message_reaches_those_whose_filters_accept_it_at_its_place(
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.assert_queues();
    }
}
