//! Filters, tests and methods where minijinja's own answer differently from Jinja2 on Python.

use std::borrow::Cow;

use minijinja::value::{Kwargs, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{filters, Environment, Error, ErrorKind, State};

use crate::source::{ITERATE, KEPT};
use crate::values::{is_generator, is_scalar, str_of, type_error, Generator, JsonStyle};

pub fn install(env: &mut Environment<'static>) {
    env.set_formatter(|out, _state, value| {
        out.write_str(&str_of(value))
            .map_err(|_| Error::new(ErrorKind::WriteFailure, "output is too long"))
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    add_text_filters(env);
    add_sequence_filters(env);
    env.add_test("iterable", |v: Value| !is_scalar(&v));
    env.add_test("sequence", |v: Value| !is_generator(&v) && !is_scalar(&v));
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
    env.add_filter("title", |v: Value| title(&str_of(&v)));
    env.add_filter("wordcount", |v: Value| {
        str_of(&v).split_whitespace().count()
    });
    env.add_filter("replace", |v: Value, from: Value, to: Value| {
        str_of(&v).replace(&str_of(&from), &str_of(&to))
    });
    env.add_filter("trim", |v: Value, characters: Option<String>| {
        let text = str_of(&v);
        match characters {
            Some(characters) => text.trim_matches(|c| characters.contains(c)).to_string(),
            None => text.trim_matches(is_python_space).to_string(),
        }
    });
    env.add_filter(
        "join",
        |v: Value, separator: Option<String>, kwargs: Kwargs| {
            let attribute: Option<String> = kwargs.get("attribute")?;
            let mut parts = Vec::new();
            for item in iterate(&v)?.try_iter()? {
                let item = attribute
                    .as_ref()
                    .map_or(Ok(item.clone()), |name| item.get_attr(name))?;
                parts.push(str_of(&item));
            }
            Ok::<_, Error>(parts.join(&separator.unwrap_or_default()))
        },
    );
}

fn add_sequence_filters(env: &mut Environment<'static>) {
    env.add_filter(ITERATE, |v: Value| iterate(&v));
    env.add_filter(KEPT, kept);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("list", |v: Value| {
        Ok::<_, Error>(Value::from(iterate(&v)?.try_iter()?.collect::<Vec<_>>()))
    });
    env.add_filter("map", |state: &State, v: Value, rest: Rest<Value>| {
        Ok::<_, Error>(Generator::value(filters::map(
            state,
            none_as_empty(&v)?,
            rest,
        )?))
    });
    type Name<'a> = Option<Cow<'a, str>>;
    env.add_filter(
        "select",
        |state: &State, v: Value, test: Name, rest: Rest<Value>| {
            Ok::<_, Error>(Generator::value(filters::select(
                state,
                none_as_empty(&v)?,
                test,
                rest,
            )?))
        },
    );
    env.add_filter(
        "reject",
        |state: &State, v: Value, test: Name, rest: Rest<Value>| {
            Ok::<_, Error>(Generator::value(filters::reject(
                state,
                none_as_empty(&v)?,
                test,
                rest,
            )?))
        },
    );
    env.add_filter(
        "selectattr",
        |state: &State, v: Value, key: Cow<'_, str>, test: Name, rest: Rest<Value>| {
            Ok::<_, Error>(Generator::value(filters::selectattr(
                state,
                none_as_empty(&v)?,
                key,
                test,
                rest,
            )?))
        },
    );
    env.add_filter(
        "rejectattr",
        |state: &State, v: Value, key: Cow<'_, str>, test: Name, rest: Rest<Value>| {
            Ok::<_, Error>(Generator::value(filters::rejectattr(
                state,
                none_as_empty(&v)?,
                key,
                test,
                rest,
            )?))
        },
    );
}

/// What Python iterates: not None, not numbers; strings by character.
fn iterate(value: &Value) -> Result<Value, Error> {
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

/// `map`, `select` and their like take None for an empty sequence.
fn none_as_empty(value: &Value) -> Result<Value, Error> {
    if value.is_none() {
        return Ok(Vec::<Value>::new().into());
    }
    iterate(value)
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
    let is_namespace = value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace"));
    if levels == 0 || is_namespace {
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

fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn title(text: &str) -> String {
    let mut inside_word = false;
    let mut out = String::new();
    for c in text.chars() {
        match (c.is_alphabetic(), inside_word) {
            (true, true) => out.extend(c.to_lowercase()),
            (true, false) => out.extend(c.to_uppercase()),
            (false, _) => out.push(c),
        }
        inside_word = c.is_alphabetic();
    }
    out
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

/// Methods that `minijinja_contrib::pycompat` does not have, then those it has.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = text_method(text, name, args)? {
            return Ok(result);
        }
    }
    if value.kind() == ValueKind::Seq && name == "index" {
        let position = value
            .try_iter()?
            .position(|item| Some(&item) == args.first());
        return position
            .map(Value::from)
            .ok_or_else(|| type_error("value is not in list"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let argument = args.first().and_then(Value::as_str).unwrap_or("");
    let three =
        |a: &str, b: &str, c: &str| Value::from(vec![a.to_string(), b.to_string(), c.to_string()]);
    Ok(Some(match name {
        "rsplit" if !argument.is_empty() => {
            let limit = args.get(1).and_then(|n| usize::try_from(n.clone()).ok());
            let mut parts: Vec<String> = match limit {
                Some(limit) => text
                    .rsplitn(limit + 1, argument)
                    .map(str::to_string)
                    .collect(),
                None => text.rsplit(argument).map(str::to_string).collect(),
            };
            parts.reverse();
            Value::from(parts)
        }
        "partition" | "rpartition" if argument.is_empty() => {
            return Err(type_error("empty separator"))
        }
        "partition" => match text.split_once(argument) {
            Some((before, behind)) => three(before, argument, behind),
            None => three(text, "", ""),
        },
        "rpartition" => match text.rsplit_once(argument) {
            Some((before, behind)) => three(before, argument, behind),
            None => three("", "", text),
        },
        "removeprefix" => Value::from(text.strip_prefix(argument).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(argument).unwrap_or(text)),
        _ => return Ok(None),
    }))
}
