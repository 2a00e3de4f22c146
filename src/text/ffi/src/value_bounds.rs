//! What a template may hold and work on: the filters that `checked_tree` puts around operands, and the formatter.
//!
//! - `SETTLED`: the value has at most so many parts and bytes, each counted as often as it occurs, and is nested at most so deep; what
//!   was lazy (`a + b`, `a * n`, a slice, a filter's items) is a list, but the list of a group. Looking through it is paid for.
//! - `STORED`, of what an attribute of a namespace becomes: the same, and no namespace is in it, so that none holds itself.
//! - `CHARGED`: nothing but the price of a text or list, which minijinja takes for the first argument and the result of any filter, and of
//!   what is lazy.
//! - `ITEM`, the subscript: pays for a text in the same way, and not for a list, which `CHARGED` would.
//! - `SPLAT`, of arguments that a list or text spells out: a list.
//! - `CLOSED`, of nothing: the price of a macro's definition, each of which keeps the names around it until the rendering ends.
//! - `KEY`, of a map that a template spells out: a text, a number of at most 64 bits, a truth or none. Others may all hash alike.

use minijinja::value::{DynObject, ObjectRepr, Value, ValueKind, ValueOrKwargs};
use minijinja::{functions, AutoEscape, Environment, Error, ErrorKind, Output, State};

pub const SETTLED: &str = "__quire_settled";
pub const STORED: &str = "__quire_stored";
pub const CHARGED: &str = "__quire_charged";
pub const ITEM: &str = "__quire_item";
pub const KEY: &str = "__quire_key";
pub const SPLAT: &str = "__quire_splat";
pub const CLOSED: &str = "__quire_closed";

/// A list of any use is far smaller: `range` itself ends at 100,000.
const MAX_PARTS: u64 = 1 << 20;
/// JSON comes at most 128 deep; what walks a value takes some hundred bytes of stack for a level.
const MAX_DEPTH: usize = 192;
/// Texts beyond what may be put out are of no use, but one may be put together of several.
const OUTPUTS_PER_VALUE: u64 = 2;
const MAX_ESCAPED: usize = 32 << 20;
/// Captured texts (macros, set blocks) count as they are put out, and again where they are used.
const OUTPUTS_PER_RENDERING: u64 = 4;
const PARTS_PER_STEP: u64 = 4;
/// Of a text that is gone through or made, wherever that is paid for.
pub const BYTES_PER_STEP: u64 = 64;
/// A tuple of what is lazy (`items()`, `zip`) is made as it is gone through, and takes over 100 bytes.
const PARTS_PER_TUPLE: u64 = 8;
const STEPS_PER_MACRO: u64 = 16;
const SOURCE_BYTES_PER_STEP: u64 = 2;
const STEPS_PER_NAME: u64 = 8;

/// A bound that a template passed.
#[derive(Debug)]
pub struct Passed(pub String);

impl std::fmt::Display for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Passed {}

fn passed(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, "a bound is passed").with_source(Passed(what))
}

pub fn check_parts(count: usize) -> Result<(), Error> {
    if count as u64 > MAX_PARTS {
        return Err(passed(format!("makes a value of more than {MAX_PARTS} parts")));
    }
    Ok(())
}

struct Walk {
    parts: u64,
    tuples_made: u64,
    bytes: u64,
    max_bytes: u64,
    to_store: bool,
}

impl Walk {
    fn steps(&self) -> u64 {
        (self.parts + self.tuples_made * PARTS_PER_TUPLE) / PARTS_PER_STEP + self.bytes / BYTES_PER_STEP
    }

    fn count(&mut self, bytes: usize, depth: usize) -> Result<(), Error> {
        self.parts += 1;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        check_parts(self.parts as usize)?;
        if self.bytes > self.max_bytes {
            return Err(passed(format!("makes a value of more than {} bytes (max_output_bytes)", self.max_bytes)));
        }
        if depth > MAX_DEPTH {
            return Err(passed(format!("makes a value nested more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }

    /// The value to take instead, where it or something in it was lazy.
    fn settle(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.count(value.as_str().map_or(0, str::len), depth)?;
        match value.as_object() {
            Some(object) => self.settle_object(object, depth),
            None => Ok(None),
        }
    }

    fn settle_object(&mut self, object: &DynObject, depth: usize) -> Result<Option<Value>, Error> {
        let kind = object.type_name();
        if self.to_store && (kind.ends_with("::Namespace") || kind.ends_with("::Loop")) {
            return Err(Error::new(ErrorKind::InvalidOperation, "a namespace cannot hold a namespace or a loop"));
        }
        match object.repr() {
            ObjectRepr::Plain => Ok(None),
            ObjectRepr::Map => self.settle_map(object, depth),
            ObjectRepr::Seq if kind.ends_with("::GroupTuple") => self.settle_group(object, depth),
            ObjectRepr::Seq => self.settle_items(object, depth, false),
            _ => self.settle_items(object, depth, true),
        }
    }

    /// A group has names besides its places, and its second place is a list that only looks lazy.
    fn settle_group(&mut self, object: &DynObject, depth: usize) -> Result<Option<Value>, Error> {
        self.settle_items(object, depth, false).map(|_| None)
    }

    fn settle_items(&mut self, object: &DynObject, depth: usize, mut changed: bool) -> Result<Option<Value>, Error> {
        let mut items = Vec::new();
        let lazy = changed;
        for item in object.try_iter().into_iter().flatten() {
            if lazy && item.as_object().is_some_and(|item| item.type_name().ends_with("::Tuple")) {
                self.tuples_made += 1;
            }
            let settled = self.settle(&item, depth + 1)?;
            changed |= settled.is_some();
            items.push(settled.unwrap_or(item));
        }
        Ok(changed.then(|| Value::from(items)))
    }

    fn settle_map(&mut self, object: &DynObject, depth: usize) -> Result<Option<Value>, Error> {
        let mut pairs = Vec::new();
        let mut changed = false;
        for (key, item) in object.try_iter_pairs().into_iter().flatten() {
            let (new_key, new_item) = (self.settle(&key, depth + 1)?, self.settle(&item, depth + 1)?);
            changed |= new_key.is_some() || new_item.is_some();
            pairs.push((new_key.unwrap_or(key), new_item.unwrap_or(item)));
        }
        Ok(changed.then(|| Value::from_pairs(pairs)))
    }
}

fn settle(state: &State, value: Value, max_bytes: u64, to_store: bool) -> Result<Value, Error> {
    if value.as_object().is_none() && value.as_str().map_or(true, |text| text.len() as u64 <= max_bytes) {
        return Ok(value);
    }
    let mut walk = Walk { parts: 0, tuples_made: 0, bytes: 0, max_bytes, to_store };
    let settled = walk.settle(&value, 0);
    state.consume_fuel(walk.steps())?;
    Ok(settled?.unwrap_or(value))
}

/// To look through all of a value that is settled.
pub fn steps_to_see(value: &Value) -> u64 {
    let mut walk = Walk { parts: 0, tuples_made: 0, bytes: 0, max_bytes: u64::MAX, to_store: false };
    match walk.settle(value, 0) {
        Ok(_) => walk.steps(),
        Err(_) => u64::MAX,
    }
}

fn key(value: Value) -> Result<Value, Error> {
    let may = match value.kind() {
        ValueKind::Number => value.as_i64().is_some() || !value.is_integer(),
        kind => matches!(kind, ValueKind::String | ValueKind::Bool | ValueKind::None),
    };
    if may {
        return Ok(value);
    }
    let what = format!("a key of a map is a {}; it may be a text, a number of 64 bits, a boolean or none", value.kind());
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

/// Whether one holds anything is seen by copying all of its names.
pub const MAX_NAMES: usize = 64;

fn namespace(state: &State, defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let count = defaults.as_ref().and_then(|defaults| defaults.len()).unwrap_or(0);
    if count > MAX_NAMES {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a namespace of {count} names; {MAX_NAMES} is the limit")));
    }
    state.consume_fuel(STEPS_PER_NAME * (1 + count as u64))?;
    functions::namespace(defaults)
}

fn is_lazy(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Iterable)
}

/// What is lazy, as the list of a group, is gone through up to the place: from its end, through all of it.
fn item(state: &State, value: Value, key: Value) -> Result<Value, Error> {
    if is_lazy(&value) {
        let count = match key.as_i64() {
            Some(at) if at >= 0 => (at as u64).min(value.len().unwrap_or(usize::MAX) as u64),
            Some(_) => value.len().unwrap_or(0) as u64,
            None => 0,
        };
        state.consume_fuel(count / PARTS_PER_STEP)?;
    }
    value.get_item(&key)
}

/// And so is it by a slice.
fn charged(state: &State, value: Value) -> Result<Value, Error> {
    if is_lazy(&value) {
        state.consume_fuel(value.len().unwrap_or(0) as u64 / PARTS_PER_STEP)?;
    }
    Ok(value)
}

/// A name has a byte or more in the macro's source, and something between it and the next.
fn closed(state: &State, nothing: Value, source_bytes: u64) -> Result<Value, Error> {
    state.consume_fuel(STEPS_PER_MACRO + source_bytes / SOURCE_BYTES_PER_STEP)?;
    Ok(nothing)
}

struct Put {
    bytes: u64,
}

const MAX_ESCAPED_BYTES: usize = 6; // of a character

pub fn check_escaped(text: &str) -> Result<(), Error> {
    let bytes = text.len() + (MAX_ESCAPED_BYTES - 1) * text.matches(['<', '>', '&', '"', '\'', '/']).count();
    if bytes > MAX_ESCAPED {
        return Err(passed(format!("escapes a text to more than {MAX_ESCAPED} bytes")));
    }
    Ok(())
}

/// Writes as minijinja does, and counts.
fn put(out: &mut Output, state: &mut State, value: &Value, max_output_bytes: u64) -> Result<(), Error> {
    let plain = matches!(state.auto_escape(), AutoEscape::None);
    let text = value.as_object().is_some().then(|| value.to_string());
    let bytes = text.as_deref().or(value.as_str()).map_or(0, str::len);
    let put = state.get_or_insert_extension(Put { bytes: 0 });
    put.bytes += (bytes * if plain { 1 } else { MAX_ESCAPED_BYTES }) as u64;
    if put.bytes > max_output_bytes.saturating_mul(OUTPUTS_PER_RENDERING) {
        return Err(passed(output_passed(max_output_bytes)));
    }
    match text {
        Some(text) if plain => out.write_str(&text).map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

pub fn output_passed(max_output_bytes: u64) -> String {
    format!("puts out more than {max_output_bytes} bytes (max_output_bytes)")
}

pub fn add_to(environment: &mut Environment<'static>, max_output_bytes: u64) {
    let max_bytes = max_output_bytes.saturating_mul(OUTPUTS_PER_VALUE);
    environment.add_filter(SETTLED, move |state: &State, value: Value| settle(state, value, max_bytes, false));
    environment.add_filter(STORED, move |state: &State, value: Value| settle(state, value, max_bytes, true));
    environment.add_filter(CHARGED, charged);
    environment.add_filter(ITEM, item);
    environment.add_filter(KEY, key);
    environment.add_filter(CLOSED, closed);
    environment.add_function("namespace", namespace);
    environment.set_formatter(move |out, state, value| put(out, state, value, max_output_bytes));
    environment.remove_global("debug"); // it writes every value of the rendering
    environment.remove_filter("pprint"); // a line for each part, indented by its depth
}
