//! Filters, tests and methods where minijinja's own answer differently from Jinja2 on Python.

use std::borrow::Cow;
use std::cmp::Ordering;

use minijinja::value::{from_args, Kwargs, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{filters, Environment, Error, ErrorKind, State};

use crate::numbers::attribute;
use crate::source::{ITERATE, KEPT, SLICE};
use crate::text::{capitalized, count_words, is_space, title_words};
use crate::values::{
    is_generator, is_namespace, is_scalar, str_of, type_error, Generator, JsonStyle,
};
use crate::{numbers, text};

pub fn install(env: &mut Environment<'static>) {
    env.set_formatter(|out, _state, value| {
        out.write_str(&str_of(value))
            .map_err(|_| Error::new(ErrorKind::WriteFailure, "output is too long"))
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_function("dict", dict);
    add_text_filters(env);
    add_sequence_filters(env);
    numbers::install(env);
    env.add_test("iterable", |v: Value| !is_scalar(&v) && !is_namespace(&v));
    env.add_test("sequence", |v: Value| {
        !is_generator(&v) && !is_scalar(&v) && !is_namespace(&v)
    });
    env.add_test("mapping", |v: Value| {
        v.kind() == ValueKind::Map && !is_namespace(&v)
    });
    env.add_test(
        "divisibleby",
        |v: Value, number: Option<Value>, kwargs: Kwargs| {
            numbers::is_divisible(&v, number.or(kwargs.get("num")?))
        },
    );
    env.add_test("lower", |v: Value| text::is_lower(&str_of(&v)));
    env.add_test("upper", |v: Value| text::is_upper(&str_of(&v)));
    env.add_test("number", |v: Value| {
        matches!(v.kind(), ValueKind::Bool | ValueKind::Number)
    });
    env.add_test("callable", |v: Value| {
        v.as_object()
            .is_some_and(|object| matches!(object.repr(), ObjectRepr::Plain))
    });
}

fn add_text_filters(env: &mut Environment<'static>) {
    env.add_filter("string", |v: Value| str_of(&v));
    env.add_filter("upper", |v: Value| str_of(&v).to_uppercase());
    env.add_filter("lower", |v: Value| str_of(&v).to_lowercase());
    env.add_filter("title", |v: Value| title_words(&str_of(&v)));
    env.add_filter("capitalize", |v: Value| capitalized(&str_of(&v)));
    env.add_filter("wordcount", |v: Value| count_words(&str_of(&v)));
    env.add_filter("replace", replace);
    env.add_filter("trim", trim);
    env.add_filter("join", join);
    env.add_filter("format", |state: &State, v: Value, args: Rest<Value>| {
        let (format, args) = text::printf(v.as_str().unwrap_or_default(), &args)?;
        filters::format(state, &format.into(), Rest(texts(&args)?))
    });
    env.add_filter("indent", text::indent);
    env.add_filter("center", text::center);
    for name in ["e", "escape"] {
        env.add_filter(name, |v: Value| if v.is_safe() { v } else { escaped(&v) });
    }
    env.add_filter("forceescape", |v: Value| escaped(&v));
}

/// `replace(s, old, new, count=None)`
fn replace(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |position: usize, name: &str| match args.get(position) {
        Some(value) => Ok(value.clone()),
        None => kwargs.get::<Value>(name),
    };
    let text = str_of(&value);
    let (from, to) = (str_of(&argument(0, "old")?), str_of(&argument(1, "new")?));
    let count = match args.get(2) {
        Some(count) => Some(count.clone()),
        None => kwargs.get("count")?,
    };
    kwargs.assert_all_used()?;
    let count = count.and_then(|count| i64::try_from(count).ok());
    Ok(match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(&from, &to, count),
        None => text.replace(&from, &to),
    })
}

/// `trim(value, chars=None)`
fn trim(value: Value, characters: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let characters = characters.or(kwargs.get("chars")?);
    kwargs.assert_all_used()?;
    let text = str_of(&value);
    Ok(match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    })
}

/// `join(value, d='', attribute=None)`
fn join(
    value: Value,
    separator: Option<Value>,
    path: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let separator = separator.or(kwargs.get("d")?);
    let path = path.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let mut parts = Vec::new();
    for item in iterate(&value)?.try_iter()? {
        parts.push(str_of(&attribute(&item, path.as_ref())?));
    }
    Ok(parts.join(&separator.as_ref().map(str_of).unwrap_or_default()))
}

fn escaped(value: &Value) -> Value {
    let mut out = String::new();
    for c in str_of(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

fn add_sequence_filters(env: &mut Environment<'static>) {
    env.add_filter(ITERATE, |v: Value| iterate(&v));
    env.add_filter(KEPT, kept);
    env.add_filter(SLICE, slice);
    env.add_filter("items", |v: Value| match v.is_undefined() {
        true => Ok(Vec::<Value>::new().into()),
        false => filters::items(&v),
    });
    env.add_filter("first", |v: Value| {
        Ok::<_, Error>(iterate(&v)?.try_iter()?.next().unwrap_or_default())
    });
    env.add_filter("last", last);
    env.add_filter("reverse", reverse);
    env.add_filter("batch", batch);
    env.add_filter("slice", slice_filter);
    for name in ["default", "d"] {
        env.add_filter(name, default);
    }
    env.add_filter("sort", sort);
    env.add_filter("dictsort", dictsort);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("list", |v: Value| {
        Ok::<_, Error>(Value::from(iterate(&v)?.try_iter()?.collect::<Vec<_>>()))
    });
    env.add_filter("map", |state: &State, v: Value, rest: Rest<Value>| {
        unless_false(&v, |items| filters::map(state, items, rest))
    });
    type Name<'a> = Option<Cow<'a, str>>;
    env.add_filter(
        "select",
        |state: &State, v: Value, test: Name, rest: Rest<Value>| {
            unless_false(&v, |items| filters::select(state, items, test, rest))
        },
    );
    env.add_filter(
        "reject",
        |state: &State, v: Value, test: Name, rest: Rest<Value>| {
            unless_false(&v, |items| filters::reject(state, items, test, rest))
        },
    );
    env.add_filter(
        "selectattr",
        |state: &State, v: Value, key: Cow<'_, str>, test: Name, rest: Rest<Value>| {
            unless_false(&v, |items| {
                filters::selectattr(state, items, key, test, rest)
            })
        },
    );
    env.add_filter(
        "rejectattr",
        |state: &State, v: Value, key: Cow<'_, str>, test: Name, rest: Rest<Value>| {
            unless_false(&v, |items| {
                filters::rejectattr(state, items, key, test, rest)
            })
        },
    );
}

/// What Python iterates: not None, not numbers; strings by character.
pub fn iterate(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(type_error("'NoneType' object is not iterable")),
        ValueKind::Bool => Err(type_error("'bool' object is not iterable")),
        ValueKind::Number => Err(type_error("'int' object is not iterable")),
        ValueKind::String => {
            let characters = value.as_str().unwrap_or_default().chars();
            Ok(characters
                .map(|c| Value::from(c.to_string()))
                .collect::<Vec<_>>()
                .into())
        }
        _ => Ok(value.clone()),
    }
}

/// `map`, `select` and their like do not look into what counts as false.
fn unless_false(
    value: &Value,
    filter: impl FnOnce(Value) -> Result<Vec<Value>, Error>,
) -> Result<Value, Error> {
    let items = match value.is_true() {
        true => filter(iterate(value)?)?,
        false => Vec::new(),
    };
    Ok(Generator::value(items))
}

/// `default(value, default_value='', boolean=False)`
fn default(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = match args.first() {
        Some(other) => other.clone(),
        None if kwargs.has("default_value") => kwargs.get("default_value")?,
        None => "".into(),
    };
    let boolean = match args.get(1) {
        Some(boolean) => boolean.is_true(),
        None => kwargs
            .get::<Option<Value>>("boolean")?
            .is_some_and(|boolean| boolean.is_true()),
    };
    kwargs.assert_all_used()?;
    let is_replaced = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_replaced { other } else { value })
}

/// Of a mapping, its keys.
fn reverse(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return filters::reverse(&value);
    }
    let mut items: Vec<Value> = iterate(&value)?.try_iter()?.collect();
    items.reverse();
    Ok(match is_generator(&value) {
        true => items.into(),
        false => Generator::value(items),
    })
}

/// As many parts or rows as any template has; a filter must not take all memory by one call.
const MOST_PARTS: usize = 100_000;

fn number_of_parts(number: Option<usize>, what: &str) -> Result<usize, Error> {
    match number {
        Some(number @ 1..=MOST_PARTS) => Ok(number),
        _ => Err(type_error(format!("{what} must be from 1 to {MOST_PARTS}"))),
    }
}

/// `batch(value, linecount, fill_with=None)`: rows of so many items.
fn batch(
    value: Value,
    count: Option<usize>,
    fill_with: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let count = number_of_parts(count.or(kwargs.get("linecount")?), "linecount")?;
    let fill_with = fill_with.or(kwargs.get("fill_with")?);
    kwargs.assert_all_used()?;
    let items: Vec<Value> = iterate(&value)?.try_iter()?.collect();
    let row = |items: &[Value]| {
        let mut row = items.to_vec();
        if let Some(filler) = &fill_with {
            row.resize(count, filler.clone());
        }
        Value::from(row)
    };
    Ok(Generator::value(items.chunks(count).map(row).collect()))
}

/// `slice(value, slices, fill_with=None)`: so many parts, of which the first have one item more where they cannot be equal.
fn slice_filter(
    value: Value,
    slices: Option<usize>,
    fill_with: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let slices = number_of_parts(slices.or(kwargs.get("slices")?), "slices")?;
    let fill_with = fill_with.or(kwargs.get("fill_with")?);
    kwargs.assert_all_used()?;
    let items: Vec<Value> = iterate(&value)?.try_iter()?.collect();
    let (length, longer) = (items.len() / slices, items.len() % slices);
    let (more, rest) = items.split_at(longer * (length + 1));
    let mut parts: Vec<Vec<Value>> = more.chunks(length + 1).map(<[Value]>::to_vec).collect();
    for i in longer..slices {
        let start = (i - longer) * length;
        let mut part = rest[start..start + length].to_vec();
        part.extend(fill_with.clone());
        parts.push(part);
    }
    Ok(Generator::value(
        parts.into_iter().map(Value::from).collect(),
    ))
}

fn length(value: Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    match value.len() {
        Some(len) if !is_generator(&value) => Ok(len),
        None if value.kind() == ValueKind::Iterable && !is_generator(&value) => {
            Ok(value.try_iter()?.count())
        }
        _ => Err(type_error(format!(
            "object of type '{}' has no len()",
            value.kind()
        ))),
    }
}

/// A row's data is nested 64 levels deep at most, and a template wraps little around it.
const DEEPEST: usize = 100;
/// What looking at a value may take. Without it a list that is added to itself forty times is looked at for hours.
const MOST_ITEMS: usize = 1_000_000;

/// A namespace is what carries a value from one turn of a loop to the next. Whoever prints, compares or frees a value calls itself
/// once a level: of `{% set ns.x = [ns.x] %}` in a long loop the process would die, and of `{% set ns.x = ns %}` at once.
fn kept(value: Value) -> Result<Value, Error> {
    let mut items_left = MOST_ITEMS;
    if is_shallow(&value, DEEPEST, &mut items_left) {
        return Ok(value);
    }
    Err(type_error(format!(
        "a namespace takes no value that is nested deeper than {DEEPEST} levels or has more than {MOST_ITEMS} items, and no namespace"
    )))
}

/// `items_left`: how many more may be looked at.
fn is_shallow(value: &Value, levels: usize, items_left: &mut usize) -> bool {
    if is_generator(value) {
        return true; // looking would use it up
    }
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return true;
    }
    if levels == 0 || is_namespace(value) {
        return false;
    }
    let Ok(mut items) = value.try_iter() else {
        return true;
    };
    items.all(|item| {
        if *items_left == 0 {
            return false;
        }
        *items_left -= 1;
        if kind != ValueKind::Map {
            return is_shallow(&item, levels - 1, items_left);
        }
        value
            .get_item(&item)
            .map_or(true, |item| is_shallow(&item, levels - 1, items_left))
    })
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)` of transformers.
fn tojson(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |position: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match args.get(position) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let indent = argument(1, "indent")?.map(|indent| match indent.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(usize::try_from(indent).unwrap_or(0).min(64)),
    });
    let (item_separator, key_separator) = match argument(2, "separators")? {
        Some(pair) => (
            str_of(&pair.get_item_by_index(0)?),
            str_of(&pair.get_item_by_index(1)?),
        ),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let style = JsonStyle {
        ensure_ascii: argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true()),
        indent,
        item_separator,
        key_separator,
        sort_keys: argument(3, "sort_keys")?.is_some_and(|value| value.is_true()),
    };
    style.dump(&value)
}

/// Methods that `minijinja_contrib::pycompat` has otherwise or not at all, then those it has.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = text::method(text, name, args)? {
            return Ok(result);
        }
    }
    match (value.kind(), name) {
        (ValueKind::Seq | ValueKind::Iterable, "index") if !is_generator(value) => {
            let position = value
                .try_iter()?
                .position(|item| Some(&item) == args.first());
            position
                .map(Value::from)
                .ok_or_else(|| type_error("value is not in list"))
        }
        (ValueKind::Seq | ValueKind::Map, "copy") if args.is_empty() => Ok(value.clone()),
        (ValueKind::String, "format") if !looks_inside(value.as_str().unwrap_or_default()) => {
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, &texts(args)?)
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Whether a format has fields as `{0.name}` and `{x[1]}`.
fn looks_inside(format: &str) -> bool {
    let mut fields = format.split('{').skip(1);
    fields.any(|field| {
        let name = field.split([':', '!', '}']).next().unwrap_or_default();
        name.contains(['.', '['])
    })
}

/// Arguments of `format`, which would print lists and objects as JSON.
fn texts(args: &[Value]) -> Result<Vec<Value>, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let text = |value: Value| match value.kind() {
        ValueKind::Seq | ValueKind::Map => str_of(&value).into(),
        _ => value,
    };
    let mut out: Vec<Value> = positional.iter().cloned().map(text).collect();
    let named = named.args().map(|name| Ok((name, text(named.peek(name)?))));
    text::push_named(&mut out, named.collect::<Result<Kwargs, Error>>()?);
    Ok(out)
}

/// `dict(mapping or pairs, name=value, …)`
fn dict(value: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(value) = value {
        for item in iterate(&value)?.try_iter()? {
            pairs.push(match value.kind() {
                ValueKind::Map => (item.clone(), value.get_item(&item)?),
                _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            });
        }
    }
    for name in kwargs.args() {
        pairs.push((Value::from(name), kwargs.peek::<Value>(name)?));
    }
    Ok(pairs.into_iter().collect())
}

/// What is compared of a value: of texts the small letters, unless a filter is told otherwise; True and False are numbers.
pub fn sort_key(value: Value, case_sensitive: Option<bool>) -> Value {
    match (value.kind(), value.as_str()) {
        (ValueKind::Bool, _) => i64::from(value.is_true()).into(),
        (_, Some(text)) if case_sensitive != Some(true) => text.to_lowercase().into(),
        _ => value,
    }
}

/// As Python orders numbers, texts and lists; it orders nothing else.
fn order(a: &Value, b: &Value) -> Result<Ordering, Error> {
    match (a.kind(), b.kind()) {
        _ if a == b => Ok(Ordering::Equal),
        (ValueKind::String, ValueKind::String) | (ValueKind::Number, ValueKind::Number) => {
            Ok(a.cmp(b))
        }
        (ValueKind::Seq, ValueKind::Seq) => {
            let mut pairs = a.try_iter()?.zip(b.try_iter()?);
            match pairs.find(|(a, b)| a != b) {
                Some((a, b)) => order(&a, &b),
                None => Ok(a.len().cmp(&b.len())),
            }
        }
        (a, b) => Err(type_error(format!("cannot order a {a} and a {b}"))),
    }
}

/// Items by their keys; equal ones stay in their order, also if the others turn round.
fn sorted(mut items: Vec<(Value, Value)>, reverse: Option<bool>) -> Result<Value, Error> {
    let mut failed = Ok(());
    items.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse == Some(true) {
            (b, a)
        } else {
            (a, b)
        };
        order(a, b).unwrap_or_else(|error| {
            failed = Err(error);
            a.cmp(b)
        })
    });
    failed.map(|()| items.into_iter().map(|(_, item)| item).collect())
}

/// `sort(value, reverse=False, case_sensitive=False, attribute=None)`; commas separate several attributes.
fn sort(
    value: Value,
    reverse: Option<bool>,
    case_sensitive: Option<bool>,
    path: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let reverse = reverse.or(kwargs.get("reverse")?);
    let case_sensitive = case_sensitive.or(kwargs.get("case_sensitive")?);
    let path = path.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let paths: Vec<Option<Value>> = match path.as_ref().and_then(Value::as_str) {
        Some(paths) => paths.split(',').map(|path| Some(path.into())).collect(),
        None => vec![path],
    };
    let mut items = Vec::new();
    for item in iterate(&value)?.try_iter()? {
        let keys = paths.iter().map(|path| {
            let key = attribute(&item, path.as_ref())?;
            Ok::<_, Error>(sort_key(key, case_sensitive))
        });
        items.push((keys.collect::<Result<Value, _>>()?, item));
    }
    sorted(items, reverse)
}

/// `dictsort(value, case_sensitive=False, by='key', reverse=False)`
fn dictsort(
    value: Value,
    case_sensitive: Option<bool>,
    by: Option<String>,
    reverse: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let case_sensitive = case_sensitive.or(kwargs.get("case_sensitive")?);
    let by = by.or(kwargs.get("by")?);
    let reverse = reverse.or(kwargs.get("reverse")?);
    kwargs.assert_all_used()?;
    if value.kind() != ValueKind::Map {
        return Err(type_error(format!("a {} has no items", value.kind())));
    }
    let mut items = Vec::new();
    for name in value.try_iter()? {
        let item = value.get_item(&name)?;
        let key = match by.as_deref().unwrap_or("key") {
            "key" => &name,
            "value" => &item,
            _ => return Err(type_error("by must be key or value")),
        };
        let key = sort_key(key.clone(), case_sensitive);
        items.push((key, vec![name, item].into()));
    }
    sorted(items, reverse)
}

/// Of a mapping it is the last key.
fn last(value: Value) -> Result<Value, Error> {
    if is_generator(&value) {
        return Err(type_error("'generator' object is not reversible"));
    }
    Ok(iterate(&value)?.try_iter()?.last().unwrap_or_default())
}

/// `value[start:stop:step]`, where minijinja slices what has no slices in Python, fails for an empty value if `step` is
/// negative, and takes the element at 0 along if `stop` is 0.
fn slice(
    value: Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(type_error("slice step cannot be zero"));
    }
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        let places = places(characters.len(), start, stop, step);
        return Ok(places.map(|at| characters[at]).collect::<String>().into());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if !is_generator(&value) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let places = places(items.len(), start, stop, step);
            Ok(places.map(|at| items[at].clone()).collect())
        }
        kind => Err(type_error(format!("a {kind} has no slices"))),
    }
}

/// The indices of a slice of so many items.
fn places(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = length as i64;
    let (lowest, highest) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let place = |index: i64| {
        let index = if index < 0 {
            index.saturating_add(length)
        } else {
            index
        };
        index.clamp(lowest, highest)
    };
    let (first, end) = if step > 0 {
        (lowest, highest)
    } else {
        (highest, lowest)
    };
    let (first, end) = (start.map_or(first, place), stop.map_or(end, place));
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < end } else { at > end })
        .map(|at| at as usize)
}
