//! Filters whose work minijinja's fuel does not see: an argument that is gone through for every item or character, what there is already
//! copied again for every item, values that stay lazy though they are lists or maps. They are paid for, or limited, or made at once, and
//! do what they do there.

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind, ValueOrKwargs};
use minijinja::{filters, Environment, Error, ErrorKind, State};

use crate::python;
use crate::value_bounds::{check_parts, steps_to_see};

/// Of the path that names what is taken of each item.
const MAX_ATTRIBUTE_BYTES: usize = 256;
/// Each is a copy of the attribute for every item.
const MAX_SORT_KEYS: usize = 8;
const LOOKUPS_PER_STEP: u64 = 4;
const PLACES_PER_STEP: u64 = 2;

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Every item may be held against all of the arguments.
fn pay_for_each(state: &State, items: &Value, args: &[ValueOrKwargs]) -> Result<(), Error> {
    let steps = args.iter().map(|arg| steps_to_see(arg)).fold(0, u64::saturating_add);
    state.consume_fuel(steps.saturating_mul(items.len().unwrap_or(0) as u64))
}

/// Each is compared with some, part by part.
fn pay_for_sorting(state: &State, items: &Value) -> Result<(), Error> {
    let comparisons = items.len().unwrap_or(0).checked_ilog2().unwrap_or(0);
    state.consume_fuel(steps_to_see(items).saturating_mul(u64::from(comparisons)))
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
    for arg in args.iter() {
        let attribute = if arg.is_kwargs() { arg.get_attr("attribute")? } else { Value::UNDEFINED };
        check_attribute(state, &items, attribute.as_str())?;
    }
    pay_for_each(state, &items, &args)?;
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
    check_named_attribute(state, &items, &kwargs)?;
    pay_for_sorting(state, &items)?;
    filters::unique(state, items, kwargs)
}

fn min(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_named_attribute(state, &items, &kwargs)?;
    filters::min(state, items, kwargs)
}

fn max(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_named_attribute(state, &items, &kwargs)?;
    filters::max(state, items, kwargs)
}

fn sort(state: &State, items: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_named_attribute(state, &items, &kwargs)?;
    let keys = kwargs.peek::<Option<&str>>("attribute")?.map_or(1, |attribute| attribute.split(',').count());
    if keys > MAX_SORT_KEYS {
        return Err(refused(format!("sort: {keys} attributes; {MAX_SORT_KEYS} is the limit")));
    }
    pay_for_sorting(state, &items)?;
    filters::sort(state, items, kwargs)
}

/// The library's public function does not pay for its sorting.
fn groupby(state: &State, items: Value, attribute: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    check_attribute(state, &items, attribute)?;
    check_named_attribute(state, &items, &kwargs)?;
    let count = items.len().unwrap_or(0) as u64;
    state.consume_fuel(count.saturating_mul(u64::from(count.checked_ilog2().unwrap_or(0)) + 2))?;
    pay_for_sorting(state, &items)?;
    filters::groupby(items, attribute, kwargs)
}

fn dictsort(state: &State, items: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let count = items.len().unwrap_or(0) as u64;
    state.consume_fuel(count.saturating_mul(u64::from(count.checked_ilog2().unwrap_or(0))))?;
    pay_for_sorting(state, items)?;
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

/// The library makes room for whole lists of up to 1,024 places, also where there is one item.
fn batch(state: &State, items: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    let lists = items.len().unwrap_or(0) as u64 / count.max(1) as u64 + 1;
    state.consume_fuel(lists.saturating_mul(count.min(1024) as u64) / PLACES_PER_STEP)?;
    filters::batch(state, items, count, fill_with)
}

/// Each is a list of its own, with room for four items where one is added.
fn slice(state: &State, items: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    let steps = if fill_with.is_some() { 5 } else { 2 };
    state.consume_fuel((count as u64).saturating_mul(steps))?;
    filters::slice(state, items, count, fill_with)
}

fn trim(state: &State, text: StringInput<'_>, chars: Option<Cow<'_, str>>) -> Result<Value, Error> {
    if let Some(chars) = &chars {
        python::pay_for_strip(state, text.as_str(), chars)?;
    }
    Ok(filters::trim(text, chars))
}

fn format(state: &mut State, text: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    if let Some(text) = text.as_str() {
        python::pay_for_fields(state, text.matches('%').count(), args.iter().map(|arg| &**arg))?;
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
    environment.add_filter("trim", trim);
    environment.add_filter("format", format);
}
