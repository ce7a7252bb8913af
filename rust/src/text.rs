//! Texts as Python has them: methods of `str` where `minijinja_contrib::pycompat` has none or answers otherwise (it counts bytes
//! where Python counts characters), and Jinja2's filters of words.

use std::collections::HashMap;
use std::ops::Range;

use minijinja::value::{from_args, Kwargs, Value, ValueKind};
use minijinja::Error;

use crate::numbers::truncated;
use crate::values::{repr_of, str_of, type_error};

/// Wider than any line. A template must not take all memory by one call.
const WIDEST: usize = 1 << 20;

pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `str.capitalize`.
pub fn capitalized(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    // Of the whole text: how a sigma is written depends on what stands before it.
    let lower = text.to_lowercase();
    let of_first: usize = first.to_lowercase().map(char::len_utf8).sum();
    let mut capital = first.to_uppercase();
    let mut out: String = capital.next().into_iter().collect();
    out.extend(capital.flat_map(char::to_lowercase));
    out + &lower[of_first..]
}

/// `str.title`: a letter behind what is no letter is a capital.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_cased) {
        let word = &rest[start..];
        let length = word.find(|c: char| !is_cased(c)).unwrap_or(word.len());
        out.push_str(&rest[..start]);
        out.push_str(&capitalized(&word[..length]));
        rest = &word[length..];
    }
    out + rest
}

/// The filter `title`: a word begins behind a space, a hyphen or a bracket, and not behind an underscore or an apostrophe.
pub fn title_words(text: &str) -> String {
    text.split_inclusive(|c: char| is_space(c) || "-({[<".contains(c))
        .map(|word| {
            let first = word.chars().next().map_or(0, char::len_utf8);
            word[..first].to_uppercase() + &word[first..].to_lowercase()
        })
        .collect()
}

/// The filter `wordcount`.
pub fn count_words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .count()
}

/// The filter `indent(s, width=4, first=False, blank=False)`. Its line ends are those of `splitlines`, and become `\n`.
pub fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let margin = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(margin) => margin.to_string(),
            None => " ".repeat(missing("", usize::try_from(width)?)?),
        },
    };
    let text = format!("{text}\n");
    let mut out = String::new();
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let is_indented = match i {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if is_indented {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// What the methods of `text` answer; None where pycompat knows better.
pub fn method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "title" | "capitalize" | "swapcase" | "isupper" | "islower" | "isspace" | "isalpha"
        | "isalnum" | "isdigit" | "isnumeric" => {
            let () = from_args(args)?;
            without_arguments(text, name)
        }
        "strip" | "lstrip" | "rstrip" => stripped(text, name, args)?.into(),
        "split" | "rsplit" => split(text, name == "rsplit", args)?.into_iter().collect(),
        "splitlines" => {
            let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            lines(text, keep_ends).into_iter().collect()
        }
        "partition" | "rpartition" => partition(text, name == "rpartition", args)?.into(),
        "removeprefix" => {
            let (affix,): (&str,) = from_args(args)?;
            text.strip_prefix(affix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            text.strip_suffix(affix).unwrap_or(text).into()
        }
        "find" | "rfind" => {
            let found = find(text, name == "rfind", args)?;
            found.map_or(-1, |at| at as i64).into()
        }
        "index" | "rindex" => find(text, name == "rindex", args)?
            .ok_or_else(|| type_error("substring not found"))?
            .into(),
        "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            range(text, start, end)
                .map_or(0, |range| text[range].matches(what).count())
                .into()
        }
        "startswith" => has_affix(text, args, |text, affix| text.starts_with(affix))?.into(),
        "endswith" => has_affix(text, args, |text, affix| text.ends_with(affix))?.into(),
        "ljust" | "rjust" | "center" => padded(text, name, args)?.into(),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.trim_start_matches(['+', '-']);
            let (sign, digits) = match text.len() - digits.len() {
                0 => ("", text),
                _ => text.split_at(1),
            };
            format!("{sign}{}{digits}", "0".repeat(missing(text, width)?)).into()
        }
        _ => return Ok(None),
    }))
}

fn without_arguments(text: &str, name: &str) -> Value {
    let all = |is: fn(char) -> bool| Value::from(!text.is_empty() && text.chars().all(is));
    match name {
        "title" => title(text).into(),
        "capitalize" => capitalized(text).into(),
        "swapcase" => swapped(text).into(),
        "isupper" => is_upper(text).into(),
        "islower" => is_lower(text).into(),
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        _ => all(char::is_numeric),
    }
}

pub fn is_upper(text: &str) -> bool {
    text.contains(char::is_uppercase) && !text.contains(char::is_lowercase)
}

pub fn is_lower(text: &str) -> bool {
    text.contains(char::is_lowercase) && !text.contains(char::is_uppercase)
}

fn swapped(text: &str) -> String {
    // Of the whole text: how a sigma is written depends on what stands beside it.
    let lower = text.to_lowercase();
    let mut lower = lower.chars();
    let swapped = |c: char| {
        let small: String = lower.by_ref().take(c.to_lowercase().count()).collect();
        match (c.is_uppercase(), c.is_lowercase()) {
            (true, _) => small,
            (_, true) => c.to_uppercase().collect(),
            _ => c.to_string(),
        }
    };
    text.chars().map(swapped).collect()
}

/// Without a name they would be an argument that is an empty mapping.
pub fn push_named(args: &mut Vec<Value>, named: Kwargs) {
    if named.args().next().is_some() {
        args.push(named.into());
    }
}

/// `format` and its arguments for minijinja, which has of Python's conversions no `%r`, and no `%d` of a fraction.
pub fn printf(format: &str, args: &[Value]) -> Result<(String, Vec<Value>), Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let mut positional = positional.to_vec();
    let mut changed = HashMap::new();
    let mut out = String::new();
    let mut rest = format;
    let mut position = 0;
    while let Some(at) = rest.find('%') {
        let (before, spec) = rest.split_at(at + 1);
        out.push_str(before);
        let key = spec
            .strip_prefix('(')
            .and_then(|key| Some(key.split_once(')')?.0));
        let flags = key.map_or(0, |key| key.len() + 2);
        let end = spec[flags..].find(|c: char| !"#0- +.123456789".contains(c));
        let end = end.map_or(spec.len(), |end| flags + end);
        let conversion = spec[end..].chars().next();
        out.push_str(&spec[..end]);
        rest = &spec[end + conversion.map_or(0, char::len_utf8)..];
        let arg = match key {
            Some(key) => named.peek::<Option<Value>>(key)?,
            None => positional.get(position).cloned(),
        };
        let other = match conversion {
            Some('r') => arg.map(|arg| repr_of(&arg).into()),
            Some('d' | 'i' | 'u') => arg.and_then(|arg| truncated(&arg)),
            _ => None,
        };
        out.extend(if conversion == Some('r') {
            Some('s')
        } else {
            conversion
        });
        match (key, other) {
            (Some(key), Some(other)) => {
                changed.insert(key.to_string(), other);
            }
            (None, Some(other)) => positional[position] = other,
            _ => {}
        }
        position += usize::from(key.is_none() && conversion != Some('%'));
    }
    if position < positional.len() {
        return Err(type_error(
            "not all arguments converted during string formatting",
        ));
    }
    let named = named.args().map(|name| {
        let value = changed.remove(name).map_or_else(|| named.peek(name), Ok)?;
        Ok((name, value))
    });
    push_named(&mut positional, named.collect::<Result<Kwargs, Error>>()?);
    Ok((out + rest, positional))
}

fn stripped<'a>(text: &'a str, name: &str, args: &[Value]) -> Result<&'a str, Error> {
    let (characters,): (Option<&str>,) = from_args(args)?;
    let falls_off = |c: char| characters.map_or(is_space(c), |characters| characters.contains(c));
    let text = match name {
        "rstrip" => text,
        _ => text.trim_start_matches(falls_off),
    };
    Ok(match name {
        "lstrip" => text,
        _ => text.trim_end_matches(falls_off),
    })
}

/// `split(sep=None, maxsplit=-1)`, and the same from the end.
fn split<'a>(text: &'a str, from_end: bool, args: &[Value]) -> Result<Vec<&'a str>, Error> {
    let (separator, limit, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?);
    let limit = limit.or(kwargs.get("maxsplit")?);
    kwargs.assert_all_used()?;
    let limit = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut parts: Vec<&str> = match (separator, from_end) {
        (Some(""), _) => return Err(type_error("empty separator")),
        (Some(separator), true) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        (Some(separator), false) => text.splitn(limit.saturating_add(1), separator).collect(),
        (None, true) => words_from_end(text, limit),
        (None, false) => words(text, limit),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

/// At most `limit` words, and what follows them as it is.
fn words(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest.find(is_space).filter(|_| parts.len() < limit);
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(word);
        rest = behind.trim_start_matches(is_space);
    }
    parts
}

/// The same from the end, the last word first.
fn words_from_end(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let space = space.filter(|_| parts.len() < limit);
        let (before, word) = rest.split_at(space.map_or(0, |(at, c)| at + c.len_utf8()));
        parts.push(word);
        rest = before.trim_end_matches(is_space);
    }
    parts
}

fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) {
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            end.len_utf8()
        };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(text: &str, from_end: bool, args: &[Value]) -> Result<Vec<String>, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(type_error("empty separator"));
    }
    let parts = match from_end {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts: [&str; 3] = match (parts, from_end) {
        (Some((before, behind)), _) => [before, separator, behind],
        (None, true) => ["", "", text],
        (None, false) => [text, "", ""],
    };
    Ok(parts.map(str::to_string).into())
}

/// The bytes of `text[start:end]`; None where no text can be found, not even an empty one.
fn range(text: &str, start: Option<i64>, end: Option<i64>) -> Option<Range<usize>> {
    let length = text.chars().count() as i64;
    let place = |index: i64| {
        if index < 0 {
            index.saturating_add(length).max(0)
        } else {
            index
        }
    };
    let start = place(start.unwrap_or(0));
    let end = place(end.unwrap_or(length)).min(length);
    if start > end {
        return None;
    }
    let byte = |index: i64| {
        let found = text.char_indices().nth(index as usize);
        found.map_or(text.len(), |(at, _)| at)
    };
    Some(byte(start)..byte(end))
}

/// The index of the first or last occurrence, in characters.
fn find(text: &str, from_end: bool, args: &[Value]) -> Result<Option<usize>, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let Some(range) = range(text, start, end) else {
        return Ok(None);
    };
    let within = &text[range.clone()];
    let at = if from_end {
        within.rfind(what)
    } else {
        within.find(what)
    };
    Ok(at.map(|at| text[..range.start + at].chars().count()))
}

fn has_affix(text: &str, args: &[Value], has: fn(&str, &str) -> bool) -> Result<bool, Error> {
    let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some(range) = range(text, start, end) else {
        return Ok(false);
    };
    let fits = |affix: &Value| {
        let affix = affix.as_str();
        affix
            .map(|affix| has(&text[range.clone()], affix))
            .ok_or_else(|| type_error("needs a string or a tuple of strings"))
    };
    if !matches!(affix.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return fits(affix);
    }
    for one in affix.try_iter()? {
        if fits(&one)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The filter `center(value, width=80)`
pub fn center(value: Value, width: Option<usize>, kwargs: Kwargs) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?).unwrap_or(80);
    kwargs.assert_all_used()?;
    padded(&str_of(&value), "center", &[width.into()])
}

fn missing(text: &str, width: usize) -> Result<usize, Error> {
    if width > WIDEST {
        return Err(type_error(format!("a width is at most {WIDEST}")));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

fn padded(text: &str, name: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    let missing = missing(text, width)?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = fill.unwrap_or(' ').to_string();
    Ok(fill.repeat(left) + text + &fill.repeat(missing - left))
}
