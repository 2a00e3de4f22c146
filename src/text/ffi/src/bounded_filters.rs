//! Filters whose work minijinja's fuel does not see: an argument that is gone through for every item or character, what there is already
//! copied again for every item, values that stay lazy though they are lists or maps. They are paid for, or limited, or made at once, and
//! do what they do there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind, ValueOrKwargs};
use minijinja::{filters, Environment, Error, ErrorKind, State};

use crate::python;
use crate::value_bounds::{check_escaped, check_parts, steps_to_see, BYTES_PER_STEP, SPLAT};

/// Of the path that names what is taken of each item.
const MAX_ATTRIBUTE_BYTES: usize = 256;
/// Each is a copy of the attribute for every item.
const MAX_SORT_KEYS: usize = 8;
/// `map('map', 'map', ...)` calls itself as often, on a thread's stack.
const MAX_MAPS: usize = 8;
const DIGITS_PER_STEP: u64 = 4;
const LOOKUPS_PER_STEP: u64 = 4;
/// Of a filter for every item, beside its own: what it is given and what it gives are objects.
const STEPS_PER_CALL: u64 = 4;
const PLACES_PER_STEP: u64 = 2;

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Every item may be held against all of the arguments.
fn pay_for_each(state: &State, items: &Value, args: &[ValueOrKwargs]) -> Result<(), Error> {
    check_items(items)?;
    let steps = args.iter().map(|arg| steps_to_see(arg)).fold(0, u64::saturating_add);
    state.consume_fuel(steps.saturating_mul(items.len().unwrap_or(0) as u64))
}

/// What goes through a text makes a list of its characters.
fn check_items(items: &Value) -> Result<(), Error> {
    match items.as_str() {
        Some(text) => check_parts(text.chars().count()),
        None => Ok(()),
    }
}

fn log2_of(count: usize) -> u64 {
    u64::from(count.checked_ilog2().unwrap_or(0))
}

fn comparisons_of(count: usize) -> u64 {
    (count as u64).saturating_mul(log2_of(count))
}

/// Each is compared with some, part by part.
fn pay_for_sorting(state: &State, items: &Value) -> Result<(), Error> {
    state.consume_fuel(steps_to_see(items).saturating_mul(log2_of(items.len().unwrap_or(0))))
}

fn at_path(item: &Value, path: &str) -> Value {
    path.split('.').fold(item.clone(), |at, name| {
        let found = name.parse().map_or_else(|_| at.get_attr(name), |place| at.get_item_by_index(place));
        found.unwrap_or_default()
    })
}

/// Where case is left aside a comparison of two texts writes both in small letters, however soon they differ: the longest may take part
/// in all.
fn pay_for_folding(state: &State, keys: impl Iterator<Item = Value>, comparisons: u64, kwargs: &Kwargs) -> Result<(), Error> {
    if kwargs.peek::<Option<bool>>("case_sensitive")?.unwrap_or(false) {
        return Ok(());
    }
    let longest = keys.filter_map(|key| key.as_str().map(str::len)).max().unwrap_or(0) as u64;
    state.consume_fuel((longest / BYTES_PER_STEP).saturating_mul(comparisons))
}

fn pay_for_folding_items(
    state: &State,
    items: &Value,
    attribute: Option<&str>,
    comparisons: u64,
    kwargs: &Kwargs,
) -> Result<(), Error> {
    let keys = items.try_iter().into_iter().flatten();
    let keys = keys.map(|item| attribute.map_or_else(|| item.clone(), |path| at_path(&item, path)));
    pay_for_folding(state, keys, comparisons, kwargs)
}

fn pay_for_comparing(state: &State, items: &Value, kwargs: &Kwargs) -> Result<(), Error> {
    pay_for_folding_items(state, items, kwargs.peek("attribute")?, items.len().unwrap_or(0) as u64, kwargs)
}

/// Each of its names is looked up in every item.
fn check_attribute(state: &State, items: &Value, attribute: Option<&str>) -> Result<(), Error> {
    let Some(attribute) = attribute else { return Ok(()) };
    if attribute.len() > MAX_ATTRIBUTE_BYTES {
        return Err(refused(format!("an attribute's name of {} bytes; {MAX_ATTRIBUTE_BYTES} is the limit", attribute.len())));
    }
    let names = attribute.split('.').count() as u64;
    state.consume_fuel((items.len().unwrap_or(0) as u64).saturating_mul(names) / LOOKUPS_PER_STEP)
}

fn check_named_attribute(state: &State, items: &Value, kwargs: &Kwargs) -> Result<(), Error> {
    check_attribute(state, items, kwargs.peek("attribute")?)
}

fn map(state: &mut State, items: Value, args: Rest<ValueOrKwargs>) -> Result<Vec<Value>, Error> {
    let maps = args.iter().take_while(|arg| arg.as_str() == Some("map")).count();
    if maps > MAX_MAPS {
        return Err(refused(format!("map: {maps} maps in one another; {MAX_MAPS} is the limit")));
    }
    for arg in args.iter() {
        let attribute = if arg.is_kwargs() { arg.get_attr("attribute")? } else { Value::UNDEFINED };
        check_attribute(state, &items, attribute.as_str())?;
    }
    pay_for_each(state, &items, &args)?;
    if args.first().is_some_and(|arg| !arg.is_kwargs()) {
        state.consume_fuel((items.len().unwrap_or(0) as u64).saturating_mul(STEPS_PER_CALL))?;
    }
    filters::map(state, items, args)
}

fn select(state: &mut State, items: Value, test: Option<Cow<'_, str>>, args: Rest<ValueOrKwargs>) -> Result<Vec<Value>, Error> {
    pay_for_each(state, &items, &args)?;
    filters::select(state, items, test, args)
}

fn reject(state: &mut State, items: Value, test: Option<Cow<'_, str>>, args: Rest<ValueOrKwargs>) -> Result<Vec<Value>, Error> {
    pay_for_each(state, &items, &args)?;
    filters::reject(state, items, test, args)
}

fn selectattr(
    state: &mut State,
    items: Value,
    attribute: Cow<'_, str>,
    test: Option<Cow<'_, str>>,
    args: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    check_attribute(state, &items, Some(&attribute))?;
    pay_for_each(state, &items, &args)?;
    filters::selectattr(state, items, attribute, test, args)
}

fn rejectattr(
    state: &mut State,
    items: Value,
    attribute: Cow<'_, str>,
    test: Option<Cow<'_, str>>,
    args: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    check_attribute(state, &items, Some(&attribute))?;
    pay_for_each(state, &items, &args)?;
    filters::rejectattr(state, items, attribute, test, args)
}

fn unique(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_items(&items)?;
    check_named_attribute(state, &items, &kwargs)?;
    pay_for_sorting(state, &items)?;
    filters::unique(state, items, kwargs)
}

fn min(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_named_attribute(state, &items, &kwargs)?;
    pay_for_comparing(state, &items, &kwargs)?;
    filters::min(state, items, kwargs)
}

fn max(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_named_attribute(state, &items, &kwargs)?;
    pay_for_comparing(state, &items, &kwargs)?;
    filters::max(state, items, kwargs)
}

fn sort(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_items(&items)?;
    check_named_attribute(state, &items, &kwargs)?;
    let keys = kwargs.peek::<Option<&str>>("attribute")?.map_or(1, |attribute| attribute.split(',').count());
    if keys > MAX_SORT_KEYS {
        return Err(refused(format!("sort: {keys} attributes; {MAX_SORT_KEYS} is the limit")));
    }
    pay_for_sorting(state, &items)?;
    pay_for_folding_items(state, &items, kwargs.peek("attribute")?, comparisons_of(items.len().unwrap_or(0)), &kwargs)?;
    filters::sort(state, items, kwargs)
}

/// The library's public function does not pay for its sorting.
fn groupby(state: &State, items: Value, attribute: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    check_attribute(state, &items, attribute)?;
    check_named_attribute(state, &items, &kwargs)?;
    check_items(&items)?;
    let count = items.len().unwrap_or(0);
    let comparisons = comparisons_of(count).saturating_add(count as u64);
    state.consume_fuel(comparisons.saturating_add(count as u64))?;
    pay_for_sorting(state, &items)?;
    let by = attribute.or(kwargs.peek("attribute")?);
    pay_for_folding_items(state, &items, by, comparisons, &kwargs)?;
    filters::groupby(items, attribute, kwargs)
}

fn dictsort(state: &State, items: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let comparisons = comparisons_of(items.len().unwrap_or(0));
    state.consume_fuel(comparisons)?;
    pay_for_sorting(state, items)?;
    let by_value = kwargs.peek::<Option<&str>>("by")? == Some("value");
    let keys = items.try_iter().into_iter().flatten();
    let keys = keys.map(|key| if by_value { items.get_item(&key).unwrap_or_default() } else { key });
    pay_for_folding(state, keys, comparisons, &kwargs)?;
    filters::dictsort(items, kwargs)
}

fn join(
    state: &mut State,
    items: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    check_attribute(state, items, attribute)?;
    check_named_attribute(state, items, &kwargs)?;
    filters::join(state, items, joiner, attribute, kwargs)
}

/// Lists one after another, which the library would copy again for each; texts cannot be summed, as in Python.
fn sum(state: &mut State, items: Value, attribute: Option<&str>, start: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let attribute = match attribute {
        Some(attribute) => Some(attribute.to_string()),
        None => kwargs.get("attribute")?,
    };
    check_attribute(state, &items, attribute.as_deref())?;
    let start = match start {
        Some(start) => start,
        None => kwargs.get::<Option<Value>>("start")?.unwrap_or(Value::from(0)),
    };
    match start.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            kwargs.assert_all_used()?;
            concatenated(state, items, attribute, &start)
        }
        ValueKind::String => Err(refused("sum: texts cannot be summed; join can".into())),
        _ => filters::sum(state, items, attribute.as_deref(), Some(start), kwargs),
    }
}

fn concatenated(state: &mut State, items: Value, attribute: Option<String>, start: &Value) -> Result<Value, Error> {
    let mut lists = vec![start.clone()];
    match attribute {
        Some(attribute) => {
            let named = Kwargs::from_iter([("attribute".to_string(), Value::from(attribute))]);
            lists.extend(filters::map(state, items, Rest(vec![Value::from(named).into()]))?);
        }
        None => lists.extend(items.try_iter()?),
    };
    lists.retain(|list| !list.is_undefined());
    match lists.iter().find(|list| !matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable)) {
        Some(other) => Err(refused(format!("sum: a {} cannot be added to a list", other.kind()))),
        None => one_list(&lists),
    }
}

fn one_list(parts: &[Value]) -> Result<Value, Error> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(part.try_iter()?);
        check_parts(all.len())?;
    }
    Ok(Value::from(all))
}

/// Of several that have a key the last counts; keys in their order, as in the library.
fn one_map(parts: &[Value]) -> Result<Value, Error> {
    let mut all = BTreeMap::new();
    for part in parts {
        for key in part.try_iter()? {
            let item = part.get_item(&key)?;
            all.insert(key, item);
        }
        check_parts(all.len())?;
    }
    Ok(Value::from_pairs(all))
}

/// The library's is lazy and has the kind of a list or a map: what looks into it goes through all of its parts.
fn chain(first: Value, others: Rest<Value>) -> Result<Value, Error> {
    let parts: Vec<Value> = std::iter::once(first).chain(others.0).collect();
    if parts.iter().all(|part| part.kind() == ValueKind::Map) {
        one_map(&parts)
    } else {
        one_list(&parts)
    }
}

const STEPS_PER_LIST: u64 = 2;

/// The library makes room for whole lists of up to 1,024 places, also where there is one item.
fn batch(state: &State, items: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_items(&items)?;
    let lists = items.len().unwrap_or(0) as u64 / count.max(1) as u64 + 1;
    state.consume_fuel(lists.saturating_mul(STEPS_PER_LIST + count.min(1024) as u64 / PLACES_PER_STEP))?;
    filters::batch(state, items, count, fill_with)
}

/// Each is a list of its own, with room for four items where one is added.
fn slice(state: &State, items: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_items(&items)?;
    check_parts(count)?;
    let steps = if fill_with.is_some() { 5 } else { 2 };
    state.consume_fuel((count as u64).saturating_mul(steps))?;
    filters::slice(state, items, count, fill_with)
}

fn list(state: &State, items: Value) -> Result<Value, Error> {
    check_items(&items)?;
    filters::list(state, items)
}

/// Arguments that a list spells out are copied more than once on their way.
fn splat(state: &State, items: Value) -> Result<Value, Error> {
    state.consume_fuel(items.len().unwrap_or(0) as u64)?;
    list(state, items)
}

fn split(state: &State, text: &Value, at: Option<Arc<str>>, most: Option<i64>) -> Result<Value, Error> {
    if let Some(text) = text.as_str() {
        python::pay_for_split(state, text, at.as_deref())?;
    }
    filters::split(text, at, most)
}

fn lines(state: &State, text: &Value) -> Result<Value, Error> {
    if let Some(text) = text.as_str() {
        python::pay_for_split(state, text, Some("\n"))?;
    }
    filters::lines(text)
}

/// Digits of a float are worked out one by one, and to round left of its point all there are.
fn round(state: &State, value: Value, precision: Option<i32>, method: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    let digits = precision.or(kwargs.peek("precision")?).unwrap_or(0);
    let digits = if digits < 0 { 1074 } else { digits.min(1074) };
    state.consume_fuel(digits as u64 / DIGITS_PER_STEP)?;
    filters::round(value, precision, method, kwargs)
}

fn trim(state: &State, text: StringInput<'_>, chars: Option<Cow<'_, str>>) -> Result<Value, Error> {
    if let Some(chars) = &chars {
        python::pay_for_strip(state, text.as_str(), chars)?;
    }
    Ok(filters::trim(text, chars))
}

/// That a float may be written with: what stands after a point.
fn digits_of(text: &str) -> u64 {
    let spelled = |after: &str| {
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        after[..end.min(6)].parse().unwrap_or(0)
    };
    text.split('.').skip(1).map(spelled).fold(0, u64::saturating_add)
}

/// What takes the place of a sign of HTML has up to six bytes.
fn escape(state: &mut State, value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str().filter(|_| !value.is_safe()) {
        check_escaped(text)?;
    }
    minijinja::filters::escape(state, value)
}

fn format(state: &mut State, text: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    if let Some(text) = text.as_str() {
        python::pay_for_fields(state, text.matches('%').count(), args.iter().map(|arg| &**arg))?;
        state.consume_fuel(digits_of(text) / DIGITS_PER_STEP)?;
    }
    filters::format(state, text, args)
}

pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("map", map);
    environment.add_filter("select", select);
    environment.add_filter("reject", reject);
    environment.add_filter("selectattr", selectattr);
    environment.add_filter("rejectattr", rejectattr);
    environment.add_filter("unique", unique);
    environment.add_filter("min", min);
    environment.add_filter("max", max);
    environment.add_filter("sort", sort);
    environment.add_filter("groupby", groupby);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("join", join);
    environment.add_filter("sum", sum);
    environment.add_filter("chain", chain);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("list", list);
    environment.add_filter(SPLAT, splat);
    environment.add_filter("split", split);
    environment.add_filter("lines", lines);
    environment.add_filter("round", round);
    environment.add_filter("trim", trim);
    environment.add_filter("format", format);
}
