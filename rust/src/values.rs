//! Values as Python prints them: `str`, `repr`, `json.dumps`.

use std::sync::{Arc, Mutex};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};

pub fn type_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// What `map`, `select` and their like return in Python: iterable once, always true, without length, not JSON.
#[derive(Debug)]
pub struct Generator(Mutex<Vec<Value>>);

impl Generator {
    pub fn value(values: Vec<Value>) -> Value {
        Value::from_object(Generator(Mutex::new(values)))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }
    fn get_value(self: &Arc<Self>, _key: &Value) -> Option<Value> {
        None
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(std::mem::take(&mut *self.0.lock().unwrap()))
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }
    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

pub fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// Whether it is an object of minijinja's own of that type.
fn is_a(value: &Value, type_name: &str) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with(type_name))
}

pub fn is_namespace(value: &Value) -> bool {
    is_a(value, "::Namespace")
}

pub fn is_scalar(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number
    )
}

/// `str(value)`; of an undefined value it is empty.
pub fn str_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        ValueKind::Undefined => String::new(),
        _ => repr_of(value),
    }
}

pub fn repr_of(value: &Value) -> String {
    match value.kind() {
        _ if is_a(value, "::Loop") => {
            let part = |name: &str| value.get_attr(name).unwrap_or_default();
            format!("<LoopContext {}/{}>", part("index"), part("length"))
        }
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::None => "None".into(),
        ValueKind::Bool => (if value.is_true() { "True" } else { "False" }).into(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let entry = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr_of(&key), repr_of(&item))
            };
            let entries: Vec<_> = value.try_iter().into_iter().flatten().map(entry).collect();
            let entries = format!("{{{}}}", entries.join(", "));
            match is_namespace(value) {
                true => format!("<Namespace {entries}>"),
                false => entries,
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<_> = value
                .try_iter()
                .into_iter()
                .flatten()
                .map(|v| repr_of(&v))
                .collect();
            format!("[{}]", items.join(", "))
        }
        _ => value.to_string(),
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// The shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".into();
    }
    if float.is_infinite() {
        return (if float > 0.0 { "inf" } else { "-inf" }).into();
    }
    let sign = if float.is_sign_negative() { "-" } else { "" };
    let (digits, exponent) = digits_of(float.abs());
    let (first, others) = digits.split_at(1);
    if !(-4..16).contains(&exponent) {
        let point = if others.is_empty() { "" } else { "." };
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!(
            "{sign}{first}{point}{others}e{exponent_sign}{:02}",
            exponent.abs()
        );
    }
    if exponent < 0 {
        let zeros = "0".repeat(-exponent as usize - 1);
        return format!("{sign}0.{zeros}{digits}");
    }
    let whole = exponent as usize + 1;
    let digits = format!("{digits:0<width$}", width = whole + 1);
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}

/// The digits of a number that is not negative, and the exponent of the first.
fn digits_of(float: f64) -> (String, i32) {
    let parts = |scientific: &str| {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
        (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
    };
    let (shortest, exponent) = parts(&format!("{float:e}"));
    // Of two as short and as near, Python takes the one whose last digit is even.
    let even = format!("{float:.*e}", shortest.len() - 1);
    match even.parse::<f64>() == Ok(float) {
        true => parts(&even),
        false => (shortest, exponent),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
    out
}

/// The characters that `repr` escapes: controls, format characters (also those of flags), private use, spaces other than ' ', and
/// planes in which there are no characters. Others that Unicode has not given away yet are printed here.
fn is_printable(c: char) -> bool {
    !matches!(c as u32,
        0..=0x1f | 0x7f..=0xa0 | 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x1680 | 0x180e
        | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000 | 0xe000..=0xf8ff | 0xfdd0..=0xfdef | 0xfeff
        | 0xfff0..=0xfffb | 0xfffe..=0xffff | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3
        | 0x1d173..=0x1d17a | 0x323b0..=0xe00ff | 0xe01f0..=0x10ffff)
}

/// The arguments of `json.dumps`.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl JsonStyle {
    pub fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(('{', '}'), keys, level, out, |key, out| {
                    self.write_string(&json_key(key), out);
                    out.push_str(&self.key_separator);
                    self.write(&value.get_item(key)?, level + 1, out)
                })?
            }
            ValueKind::Seq | ValueKind::Iterable if !is_generator(value) => {
                let items = value.try_iter()?.collect();
                self.write_items(('[', ']'), items, level, out, |item, out| {
                    self.write(item, level + 1, out)
                })?
            }
            kind => {
                return Err(type_error(format!(
                    "Object of type {kind} is not JSON serializable"
                )))
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        (open, close): (char, char),
        items: Vec<Value>,
        level: usize,
        out: &mut String,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(level + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.break_line(level, out);
        }
        out.push(close);
        Ok(())
    }

    fn break_line(&self, level: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        digits => digits.into(),
    }
}

fn json_key(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).into(),
        ValueKind::Number => json_number(key),
        _ => str_of(key),
    }
}
