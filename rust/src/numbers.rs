//! Filters of numbers as Jinja2 on Python has them.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error};

use crate::python::{iterate, sort_key};
use crate::text::is_space;
use crate::values::type_error;

pub fn install(env: &mut Environment<'static>) {
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("round", round);
    env.add_filter("sum", sum);
    env.add_filter(
        "min",
        |values: Value, case_sensitive: Option<bool>, path: Option<Value>, kwargs: Kwargs| {
            extreme(values, Ordering::Less, case_sensitive, path, kwargs)
        },
    );
    env.add_filter(
        "max",
        |values: Value, case_sensitive: Option<bool>, path: Option<Value>, kwargs: Kwargs| {
            extreme(values, Ordering::Greater, case_sensitive, path, kwargs)
        },
    );
}

/// Without spaces around it and without the underscores that Python allows between digits.
fn bare(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| text.as_bytes().get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let between_digits =
        |(at, _): (usize, &str)| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    text.match_indices('_')
        .all(between_digits)
        .then(|| text.replace('_', ""))
}

fn whole(text: &str, base: u32) -> Option<i128> {
    let text = bare(text)?.to_ascii_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(digits);
    if !(2..=36).contains(&base) || !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i128::from_str_radix(digits, base).ok()?;
    Some(sign * number)
}

fn real(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => bare(value.as_str()?)?.parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// A number's or a boolean's exact value, if it has no fraction by its type.
fn exact(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Err(type_error("an undefined value is no number"));
    }
    Ok(())
}

/// `divisibleby(value, num)`
pub fn is_divisible(value: &Value, number: Option<Value>) -> Result<bool, Error> {
    let number = number.unwrap_or_default();
    match (exact(value), exact(&number)) {
        (Some(_), Some(0)) => Err(type_error("modulo by zero")),
        (Some(value), Some(number)) => Ok(value % number == 0),
        _ => match (real(value), real(&number)) {
            (Some(value), Some(number)) if number != 0.0 => Ok(value % number == 0.0),
            _ => Err(type_error("divisibleby needs two numbers")),
        },
    }
}

/// What `int` makes of a finite fraction.
pub fn truncated(value: &Value) -> Option<Value> {
    let fraction = real(value).filter(|number| number.is_finite() && value.is_number())?;
    Some((fraction as i128).into()).filter(|_| exact(value).is_none())
}

/// `int(value, default=0, base=10)`
fn int(
    value: Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?);
    let base = base.or(kwargs.get("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    defined(&value)?;
    let number = match value.as_str() {
        Some(text) => whole(text, base),
        None => exact(&value),
    };
    let truncated = || {
        let number = real(&value).filter(|number| number.is_finite())?;
        Some(number as i128)
    };
    let number = number.or_else(truncated).map(Value::from);
    Ok(number.or(default).unwrap_or_else(|| Value::from(0)))
}

/// `float(value, default=0.0)`
fn float(value: Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?);
    kwargs.assert_all_used()?;
    defined(&value)?;
    let number = real(&value).map(Value::from);
    Ok(number.or(default).unwrap_or_else(|| Value::from(0.0)))
}

/// `round(value, precision=0, method='common')`: halves go to the even neighbour.
fn round(
    value: Value,
    precision: Option<i32>,
    method: Option<String>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let precision = precision.or(kwargs.get("precision")?).unwrap_or(0);
    let method = method.or(kwargs.get("method")?);
    kwargs.assert_all_used()?;
    defined(&value)?;
    let number = match value.kind() {
        ValueKind::Number | ValueKind::Bool => real(&value).unwrap_or(f64::NAN),
        kind => return Err(type_error(format!("cannot round a {kind}"))),
    };
    let unit = 10f64.powi(precision.saturating_abs());
    let scaled = if precision < 0 {
        number / unit
    } else {
        number * unit
    };
    let unscaled = |scaled: f64| {
        if precision < 0 {
            scaled * unit
        } else {
            scaled / unit
        }
    };
    match method.as_deref().unwrap_or("common") {
        "ceil" => Ok(unscaled(scaled.ceil()).into()),
        "floor" => Ok(unscaled(scaled.floor()).into()),
        "common" => match (exact(&value), precision < 0) {
            (Some(number), false) => Ok(number.into()),
            (Some(_), true) => Ok((unscaled(scaled.round_ties_even()) as i128).into()),
            (None, true) => Ok(unscaled(scaled.round_ties_even()).into()),
            // By its digits, since most fractions are no binary numbers: 2.675 is a little below.
            (None, false) => {
                const MOST_DIGITS: usize = 330;
                let digits = MOST_DIGITS.min(precision as usize);
                let rounded = format!("{number:.digits$}").parse::<f64>();
                Ok(rounded.unwrap_or(number).into())
            }
        },
        _ => Err(type_error("method must be common, ceil or floor")),
    }
}

/// What Jinja2 calls an attribute: an index, or names and indices with dots between them. Without a path it is the item.
pub fn attribute(item: &Value, path: Option<&Value>) -> Result<Value, Error> {
    let Some(path) = path else {
        return Ok(item.clone());
    };
    let Some(names) = path.as_str() else {
        return item.get_item(path);
    };
    names
        .split('.')
        .try_fold(item.clone(), |value, name| match name.parse() {
            Ok(index) => value.get_item_by_index(index),
            Err(_) => value.get_attr(name),
        })
}

/// `sum(iterable, attribute=None, start=0)`, of numbers or of lists.
fn sum(
    values: Value,
    path: Option<Value>,
    start: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let path = path.or(kwargs.get("attribute")?);
    let start = start.or(kwargs.get("start")?);
    kwargs.assert_all_used()?;
    let mut items = Vec::new();
    for item in iterate(&values)?.try_iter()? {
        items.push(attribute(&item, path.as_ref())?);
    }
    let start = start.unwrap_or_else(|| Value::from(0));
    if start.kind() == ValueKind::Seq {
        let mut all: Vec<Value> = start.try_iter()?.collect();
        for item in items {
            all.extend(item.try_iter()?);
        }
        return Ok(all.into());
    }
    items.iter().try_fold(start, |sum, item| plus(&sum, item))
}

fn plus(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (exact(a), exact(b)) {
        let sum = a.checked_add(b);
        return sum
            .map(Value::from)
            .ok_or_else(|| type_error("a sum is too large"));
    }
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match (real(a), real(b)) {
        (Some(x), Some(y)) if is_number(a) && is_number(b) => Ok((x + y).into()),
        _ => Err(type_error(format!(
            "cannot add a {} to a {}",
            b.kind(),
            a.kind()
        ))),
    }
}

/// `min` and `max`: the first of the items that no other goes before; of none it is undefined.
fn extreme(
    values: Value,
    goes_before: Ordering,
    case_sensitive: Option<bool>,
    path: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let case_sensitive = case_sensitive.or(kwargs.get("case_sensitive")?);
    let path = path.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let mut best: Option<(Value, Value)> = None;
    for item in iterate(&values)?.try_iter()? {
        let key = sort_key(attribute(&item, path.as_ref())?, case_sensitive);
        if best
            .as_ref()
            .is_none_or(|(_, before)| key.cmp(before) == goes_before)
        {
            best = Some((item, key));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(item, _)| item))
}
