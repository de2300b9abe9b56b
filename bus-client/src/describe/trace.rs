//! What serde would be told of the values of a Rust type, found out by asking the type.
//!
//! A type's `Deserialize` is given a format that answers every question, and that notes what was
//! asked for: a struct of these fields, a sequence, a `u8`. Values are made up on the way, for
//! there have to be some: 1, `a`, one element, one way through each enum.
//!
//! Invariant: a type is noted under its name once it was read to its end, and what is noted only
//! gets fuller: what one pass could not see, another fills in. All is seen when every variant of
//! every enum that was met has been chosen in a pass; each time an enum is met it is the turn of
//! the next one, so whatever lies behind them is met again and again.
//!
//! **Recursion** ends because a type that lies in itself is read shallow from its second time on:
//! no option is there, sequences and maps are empty, and of an enum the same first variant is
//! taken, which is not taken any more once it has led in a circle. What is left out there is what
//! the outer one shows.

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::discriminant;

use bus_core::{DataType, Field, Variant, VariantType};
use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

/// Goes through one type once.
pub(super) type Root = fn(&mut Tracer, &mut DataType) -> Result<(), Halt>;

/// The root of a type.
pub(super) fn root<T: Deserialize<'static>>(
    tracer: &mut Tracer,
    slot: &mut DataType,
) -> Result<(), Halt> {
    T::deserialize(Reader { tracer, slot }).map(drop)
}

/// Types under the names under which others name them.
pub(super) type Types = BTreeMap<String, DataType>;

/// Why all roots together cannot be described.
#[derive(Debug)]
pub(super) enum Untraced {
    /// This root has asked for something without an answer, or has refused one.
    Refused { root: usize, why: String },
    /// Variants of these were not met.
    Unseen(Vec<String>),
}

/// What all roots are, and all types that have names.
pub(super) fn trace(roots: &[Root]) -> Result<(Vec<DataType>, Types), Untraced> {
    let mut tracer = Tracer::default();
    let mut found = vec![UNSEEN; roots.len()];
    let (mut known, mut in_vain) = (0, 0);
    loop {
        for (at, root) in roots.iter().enumerate() {
            let mut slot = UNSEEN;
            match root(&mut tracer, &mut slot) {
                Ok(()) => merge(&mut found[at], slot),
                Err(Halt::Again) => {}
                Err(Halt::Twice) => {
                    let why = "a field is there twice".to_owned();
                    return Err(Untraced::Refused { root: at, why });
                }
                Err(Halt::Said(why)) => return Err(Untraced::Refused { root: at, why }),
            }
        }
        let unseen = tracer.unseen();
        if unseen.is_empty() && !found.contains(&UNSEEN) {
            let found = found.into_iter().map(tidied).collect();
            return Ok((found, tracer.into_types()));
        }
        in_vain = if tracer.known() == known { in_vain + 1 } else { 0 };
        known = tracer.known();
        if in_vain > PASSES + 2 * tracer.cases() {
            return Err(Untraced::Unseen(unseen));
        }
    }
}

/// Passes that may bring nothing new, beside two for each variant that there is.
const PASSES: usize = 16;

/// How deep containers may lie in each other before it is taken for a circle.
const DEEPEST: usize = 64;

/// What stands for a type that was not seen yet: no type has this name.
const UNSEEN: DataType = DataType::Named(String::new());

/// A type's path with its arguments: what tells two types of one name apart.
type Path = &'static str;

#[derive(Debug, Default)]
pub(super) struct Tracer {
    /// By path: under which name it is described, and as what. Enums are beside it.
    types: BTreeMap<Path, (String, DataType)>,
    enums: BTreeMap<Path, Vec<Case>>,
    names: BTreeSet<String>,
    /// Containers that are being read, outermost first.
    within: Vec<Path>,
    /// Enums that are being read again within themselves, and the variants that were taken there.
    repeated: Vec<(Path, usize)>,
    /// How many of the containers lie in themselves.
    shallow: usize,
    /// Names of fields that are other names of fields before them: list and place in it.
    aliases: BTreeSet<(usize, usize)>,
}

/// A variant of an enum.
#[derive(Debug)]
struct Case {
    name: &'static str,
    holds: Option<VariantType>,
    /// Which variant it is for Rust; another name of one has the same.
    discriminant: String,
    turns: usize,
    /// Taken within its own enum it has led back to that without end.
    circles: bool,
}

/// Why a pass has ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// Something was learned that the next pass will heed.
    Again,
    /// A struct was given a field that it had.
    Twice,
    /// For the reason that a type gave.
    Said(String),
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Again => f.write_str("once more"),
            Self::Twice => f.write_str("a field is there twice"),
            Self::Said(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Halt {}

impl de::Error for Halt {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self::Said(why.to_string())
    }

    fn duplicate_field(_: &'static str) -> Self {
        Self::Twice
    }
}

impl Tracer {
    fn cases(&self) -> usize {
        self.enums.values().map(Vec::len).sum()
    }

    /// Grows with everything that is learned, but for what lies in a type that is known.
    fn known(&self) -> usize {
        let seen = |cases: &Vec<Case>| cases.iter().filter(|case| case.holds.is_some()).count();
        let circles = |cases: &Vec<Case>| cases.iter().filter(|case| case.circles).count();
        let of_enums: usize = self.enums.values().map(|cases| seen(cases) + circles(cases)).sum();
        self.types.len() + self.aliases.len() + of_enums
    }

    fn unseen(&self) -> Vec<String> {
        let all_seen = |cases: &[Case]| cases.iter().all(|case| case.holds.is_some());
        let unseen = self.enums.iter().filter(|(_, cases)| !all_seen(cases));
        unseen.map(|(path, _)| self.types[path].0.clone()).collect()
    }

    fn into_types(mut self) -> Types {
        let of = |(path, (name, data_type)): (Path, (String, DataType))| {
            let data_type = match self.enums.remove(path) {
                Some(cases) => DataType::Enum(variants(cases)),
                None => tidied(data_type),
            };
            (name, data_type)
        };
        self.types.into_iter().map(of).collect()
    }

    /// Reads a container of a name; `read` says what it is.
    fn container<T>(
        &mut self,
        name: &'static str,
        slot: &mut DataType,
        read: impl FnOnce(&mut Self, &mut DataType) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        let path = type_name::<T>();
        if !self.types.contains_key(path) {
            let name = self.free_name(name, path);
            self.types.insert(path, (name, UNSEEN));
        }
        *slot = DataType::Named(self.types[path].0.clone());
        if self.within.len() >= DEEPEST {
            return Err(self.break_circle(name));
        }
        let again = usize::from(self.within.contains(&path));
        self.within.push(path);
        self.shallow += again;
        let mut found = UNSEEN;
        let result = read(self, &mut found);
        self.shallow -= again;
        self.within.pop();
        if result.is_ok()
            && let Some((_, known)) = self.types.get_mut(path)
        {
            merge(known, found);
        }
        result
    }

    /// A name that no other type has: its own, or that with its arguments, or with a number.
    fn free_name(&mut self, name: &str, path: Path) -> String {
        let arguments = path.find('<').map_or("", |at| &path[at..]);
        let told = format!("{name}{}", without_modules(arguments));
        let numbered = (2_u32..).map(|number| format!("{name}_{number}"));
        let mut candidates = [name.to_owned(), told].into_iter().chain(numbered);
        let free = candidates.find(|name| !self.names.contains(name));
        let free = free.expect("there are more numbers than types");
        self.names.insert(free.clone());
        free
    }

    /// Leaves out from now on what has led in a circle.
    fn break_circle(&mut self, name: &str) -> Halt {
        let Some((path, at)) = self.repeated.last().copied() else {
            return Halt::Said(format!("{name} lies in itself without end"));
        };
        if let Some(cases) = self.enums.get_mut(path) {
            cases[at].circles = true;
        }
        Halt::Again
    }

    /// Whose turn it is of an enum's variants.
    fn choose(&mut self, path: Path, variants: &'static [&'static str]) -> Result<usize, Halt> {
        let again = self.within.iter().filter(|within| **within == path).count() > 1;
        let cases = self.enums.entry(path).or_insert_with(|| {
            let case = |name: &&'static str| Case {
                name,
                holds: None,
                discriminant: String::new(),
                turns: 0,
                circles: false,
            };
            variants.iter().map(case).collect()
        });
        let chosen = if again {
            cases.iter().position(|case| !case.circles)
        } else {
            let turn = cases.iter().enumerate().min_by_key(|(_, case)| case.turns);
            turn.map(|(at, _)| at)
        };
        let at = chosen.ok_or_else(|| {
            Halt::Said(format!("no variant of {path} can be read without another of the same"))
        })?;
        if again {
            self.repeated.push((path, at));
        } else {
            cases[at].turns += 1;
        }
        Ok(at)
    }
}

/// Asks a type what it would read, and notes it in its slot.
struct Reader<'a> {
    tracer: &'a mut Tracer,
    slot: &'a mut DataType,
}

macro_rules! primitive {
    ($($deserialize:ident $visit:ident $data_type:ident $value:expr;)*) => {$(
        fn $deserialize<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
            *self.slot = DataType::$data_type;
            visitor.$visit($value)
        }
    )*};
}

impl de::Deserializer<'static> for Reader<'_> {
    type Error = Halt;

    // Numbers of 1, so that those of types that exclude 0 are some.
    primitive! {
        deserialize_bool visit_bool Bool true;
        deserialize_i8 visit_i8 I8 1;
        deserialize_i16 visit_i16 I16 1;
        deserialize_i32 visit_i32 I32 1;
        deserialize_i64 visit_i64 I64 1;
        deserialize_i128 visit_i128 I128 1;
        deserialize_u8 visit_u8 U8 1;
        deserialize_u16 visit_u16 U16 1;
        deserialize_u32 visit_u32 U32 1;
        deserialize_u64 visit_u64 U64 1;
        deserialize_u128 visit_u128 U128 1;
        deserialize_f32 visit_f32 F32 1.0;
        deserialize_f64 visit_f64 F64 1.0;
        deserialize_char visit_char Char 'a';
        deserialize_str visit_borrowed_str String "a";
        deserialize_string visit_string String "a".to_owned();
        deserialize_bytes visit_borrowed_bytes Bytes b"a";
        deserialize_byte_buf visit_byte_buf Bytes b"a".to_vec();
    }

    fn deserialize_unit<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        *self.slot = DataType::Unit;
        visitor.visit_unit()
    }

    /// Whatever there is: of what describes itself that is all there is to say.
    fn deserialize_any<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        *self.slot = DataType::Any;
        visitor.visit_unit().map_err(|_: Halt| does_not_say())
    }

    fn deserialize_ignored_any<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        self.deserialize_any(visitor)
    }

    /// Only keys are asked for so, here of a struct that was not asked for as one.
    fn deserialize_identifier<V: Visitor<'static>>(self, _: V) -> Result<V::Value, Halt> {
        Err(does_not_say())
    }

    fn deserialize_option<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        let mut of = UNSEEN;
        let value = if self.tracer.shallow > 0 {
            visitor.visit_none()
        } else {
            visitor.visit_some(Reader { tracer: self.tracer, slot: &mut of })
        };
        *self.slot = DataType::Option(Box::new(of));
        value
    }

    fn deserialize_seq<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        let mut of = vec![UNSEEN];
        let count = usize::from(self.tracer.shallow == 0);
        let value = visitor.visit_seq(Elements::new(self.tracer, &mut of[..count]));
        *self.slot = DataType::Seq(Box::new(of.remove(0)));
        value
    }

    fn deserialize_map<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Halt> {
        let (mut key, mut value) = (UNSEEN, UNSEEN);
        let left = usize::from(self.tracer.shallow == 0);
        let entries = Entries { tracer: self.tracer, key: &mut key, value: &mut value, left };
        let made = visitor.visit_map(entries);
        *self.slot = DataType::Map { key: Box::new(key), value: Box::new(value) };
        made
    }

    fn deserialize_tuple<V: Visitor<'static>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Halt> {
        let mut of = vec![UNSEEN; length];
        let value = visitor.visit_seq(Elements::new(self.tracer, &mut of));
        *self.slot = DataType::Tuple(of);
        value
    }

    fn deserialize_unit_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Halt> {
        self.tracer.container(name, self.slot, |_, slot| {
            *slot = DataType::UnitStruct;
            visitor.visit_unit()
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Halt> {
        self.tracer.container(name, self.slot, |tracer, slot| {
            let mut of = UNSEEN;
            let value = visitor.visit_newtype_struct(Reader { tracer, slot: &mut of });
            *slot = DataType::NewtypeStruct(Box::new(of));
            value
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Halt> {
        self.tracer.container(name, self.slot, |tracer, slot| {
            let mut of = vec![UNSEEN; length];
            let value = visitor.visit_seq(Elements::new(tracer, &mut of));
            *slot = DataType::TupleStruct(of);
            value
        })
    }

    fn deserialize_struct<V: Visitor<'static>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Halt> {
        self.tracer.container(name, self.slot, |tracer, slot| {
            let (value, fields) = read_fields(tracer, fields, visitor)?;
            *slot = DataType::Struct(fields);
            Ok(value)
        })
    }

    fn deserialize_enum<V: Visitor<'static>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Halt> {
        let path = type_name::<V::Value>();
        self.tracer.container(name, self.slot, |tracer, _| {
            let repeated = tracer.repeated.len();
            let at = tracer.choose(path, variants)?;
            let mut holds = VariantType::Unit;
            let chosen = Chosen { tracer, name: variants[at], holds: &mut holds };
            let value = visitor.visit_enum(chosen);
            tracer.repeated.truncate(repeated);
            let value = value?;
            if let Some(case) = tracer.enums.get_mut(path).and_then(|cases| cases.get_mut(at)) {
                case.discriminant = format!("{:?}", discriminant(&value));
                match &mut case.holds {
                    Some(known) => merge_variant(known, holds),
                    unknown => *unknown = Some(holds),
                }
            }
            Ok(value)
        })
    }

    fn is_human_readable(&self) -> bool {
        // As CBOR is not.
        false
    }
}

fn does_not_say() -> Halt {
    let text = "a type asks for whatever there is, and does not say what it reads \
                (flatten, untagged and tag make it do so)";
    Halt::Said(text.to_owned())
}

/// Reads the fields of a struct, or of a variant.
fn read_fields<V: Visitor<'static>>(
    tracer: &mut Tracer,
    names: &'static [&'static str],
    visitor: V,
) -> Result<(V::Value, Vec<Field>), Halt> {
    let (mut found, mut at) = (Vec::new(), 0);
    let fields = Fields { tracer: &mut *tracer, names, at: &mut at, found: &mut found };
    match visitor.visit_map(fields) {
        Ok(value) => Ok((value, found)),
        Err(Halt::Twice) if at > 0 => {
            // Names stand in one list, those of one field behind each other.
            tracer.aliases.insert((names.as_ptr() as usize, at - 1));
            Err(Halt::Again)
        }
        Err(error) => Err(error),
    }
}

/// The elements of a sequence or a tuple.
struct Elements<'a> {
    tracer: &'a mut Tracer,
    slots: std::slice::IterMut<'a, DataType>,
}

impl<'a> Elements<'a> {
    fn new(tracer: &'a mut Tracer, slots: &'a mut [DataType]) -> Self {
        Self { tracer, slots: slots.iter_mut() }
    }
}

impl SeqAccess<'static> for Elements<'_> {
    type Error = Halt;

    fn next_element_seed<T: DeserializeSeed<'static>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Halt> {
        let Some(slot) = self.slots.next() else {
            return Ok(None);
        };
        seed.deserialize(Reader { tracer: self.tracer, slot }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.slots.len())
    }
}

/// The entry of a map.
struct Entries<'a> {
    tracer: &'a mut Tracer,
    key: &'a mut DataType,
    value: &'a mut DataType,
    left: usize,
}

impl MapAccess<'static> for Entries<'_> {
    type Error = Halt;

    fn next_key_seed<K: DeserializeSeed<'static>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Halt> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Reader { tracer: self.tracer, slot: self.key }).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'static>>(&mut self, seed: V) -> Result<V::Value, Halt> {
        seed.deserialize(Reader { tracer: self.tracer, slot: self.value })
    }
}

/// The fields of a struct.
struct Fields<'a> {
    tracer: &'a mut Tracer,
    names: &'static [&'static str],
    at: &'a mut usize,
    found: &'a mut Vec<Field>,
}

impl MapAccess<'static> for Fields<'_> {
    type Error = Halt;

    fn next_key_seed<K: DeserializeSeed<'static>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Halt> {
        while self.tracer.aliases.contains(&(self.names.as_ptr() as usize, *self.at)) {
            *self.at += 1;
        }
        let Some(name) = self.names.get(*self.at) else {
            return Ok(None);
        };
        *self.at += 1;
        self.found.push(Field::new(*name, UNSEEN));
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'static>>(&mut self, seed: V) -> Result<V::Value, Halt> {
        let field = self.found.last_mut().expect("its key was read before");
        seed.deserialize(Reader { tracer: self.tracer, slot: &mut field.data_type })
    }
}

/// The variant whose turn it is.
struct Chosen<'a> {
    tracer: &'a mut Tracer,
    name: &'static str,
    holds: &'a mut VariantType,
}

impl EnumAccess<'static> for Chosen<'_> {
    type Error = Halt;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'static>>(self, seed: V) -> Result<(V::Value, Self), Halt> {
        let variant = seed.deserialize(self.name.into_deserializer())?;
        Ok((variant, self))
    }
}

impl VariantAccess<'static> for Chosen<'_> {
    type Error = Halt;

    fn unit_variant(self) -> Result<(), Halt> {
        *self.holds = VariantType::Unit;
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'static>>(self, seed: T) -> Result<T::Value, Halt> {
        let mut of = UNSEEN;
        let value = seed.deserialize(Reader { tracer: self.tracer, slot: &mut of });
        *self.holds = VariantType::Newtype(of);
        value
    }

    fn tuple_variant<V: Visitor<'static>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Halt> {
        let mut of = vec![UNSEEN; length];
        let value = visitor.visit_seq(Elements::new(self.tracer, &mut of));
        *self.holds = VariantType::Tuple(of);
        value
    }

    fn struct_variant<V: Visitor<'static>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Halt> {
        let (value, fields) = read_fields(self.tracer, fields, visitor)?;
        *self.holds = VariantType::Struct(fields);
        Ok(value)
    }
}

/// Fills in what was not seen before.
fn merge(known: &mut DataType, found: DataType) {
    match (known, found) {
        (known, found) if *known == UNSEEN => *known = found,
        (DataType::Option(known), DataType::Option(found))
        | (DataType::Seq(known), DataType::Seq(found))
        | (DataType::NewtypeStruct(known), DataType::NewtypeStruct(found)) => merge(known, *found),
        (DataType::Tuple(known), DataType::Tuple(found))
        | (DataType::TupleStruct(known), DataType::TupleStruct(found)) => merge_all(known, found),
        (DataType::Struct(known), DataType::Struct(found)) => merge_fields(known, found),
        (
            DataType::Map { key: known_key, value: known_value },
            DataType::Map { key: found_key, value: found_value },
        ) => {
            merge(known_key, *found_key);
            merge(known_value, *found_value);
        }
        _ => {}
    }
}

fn merge_all(known: &mut [DataType], found: Vec<DataType>) {
    known.iter_mut().zip(found).for_each(|(known, found)| merge(known, found));
}

fn merge_fields(known: &mut [Field], found: Vec<Field>) {
    let pairs = known.iter_mut().zip(found);
    pairs.for_each(|(known, found)| merge(&mut known.data_type, found.data_type));
}

fn merge_variant(known: &mut VariantType, found: VariantType) {
    match (known, found) {
        (VariantType::Newtype(known), VariantType::Newtype(found)) => merge(known, found),
        (VariantType::Tuple(known), VariantType::Tuple(found)) => merge_all(known, found),
        (VariantType::Struct(known), VariantType::Struct(found)) => merge_fields(known, found),
        _ => {}
    }
}

/// The same with long tuples of one type as arrays.
fn tidied(data_type: DataType) -> DataType {
    let boxed = |of: Box<DataType>| Box::new(tidied(*of));
    match data_type {
        DataType::Tuple(of) if of.len() > LONG && of.iter().all(|other| *other == of[0]) => {
            let length = u32::try_from(of.len()).unwrap_or(u32::MAX);
            let of = of.into_iter().next().expect("it is long");
            DataType::Array { of: Box::new(tidied(of)), length }
        }
        DataType::Option(of) => DataType::Option(boxed(of)),
        DataType::Seq(of) => DataType::Seq(boxed(of)),
        DataType::NewtypeStruct(of) => DataType::NewtypeStruct(boxed(of)),
        DataType::Map { key, value } => DataType::Map { key: boxed(key), value: boxed(value) },
        DataType::Tuple(of) => DataType::Tuple(of.into_iter().map(tidied).collect()),
        DataType::TupleStruct(of) => DataType::TupleStruct(of.into_iter().map(tidied).collect()),
        DataType::Struct(fields) => DataType::Struct(tidied_fields(fields)),
        other => other,
    }
}

/// A tuple of more than these is written as an array, if all are of one type.
const LONG: usize = 4;

fn tidied_fields(fields: Vec<Field>) -> Vec<Field> {
    fields.into_iter().map(|field| Field::new(field.name, tidied(field.data_type))).collect()
}

/// An enum's variants without the other names of each.
fn variants(cases: Vec<Case>) -> Vec<Variant> {
    let mut seen = BTreeSet::new();
    let first = |case: &Case| seen.insert(case.discriminant.clone());
    let variant = |case: Case| {
        let holds = match case.holds.unwrap_or_default() {
            VariantType::Newtype(of) => VariantType::Newtype(tidied(of)),
            VariantType::Tuple(of) => VariantType::Tuple(of.into_iter().map(tidied).collect()),
            VariantType::Struct(fields) => VariantType::Struct(tidied_fields(fields)),
            other => other,
        };
        Variant::new(case.name, holds)
    };
    cases.into_iter().filter(first).map(variant).collect()
}

/// Paths in a text without the modules in them.
fn without_modules(text: &str) -> String {
    let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut rest = text;
    let mut short = String::new();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_of_path(c)).unwrap_or(rest.len());
        let (path, after) = rest.split_at(end);
        short.push_str(path.rsplit("::").next().unwrap_or_default());
        let next = after.find(is_of_path).unwrap_or(after.len());
        short.push_str(&after[..next]);
        rest = &after[next..];
    }
    short
}
