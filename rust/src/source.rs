//! Rewrites the source of a template where minijinja's grammar or its iteration differ from Jinja2's.

/// Filter that a `{% generation %}` block goes through; see `render.rs`.
pub const GENERATION: &str = "__luthier_generation";
/// Filter that refuses what Python cannot iterate, see `python.rs`.
pub const ITERATE: &str = "__luthier_iterate";

/// Filter that refuses what a namespace must not keep, see `python.rs`.
pub const KEPT: &str = "__luthier_kept";
/// Filter that slices, see `python.rs`.
pub const SLICE: &str = "__luthier_slice";

pub struct Rewritten {
    pub source: String,
    pub has_generation: bool,
}

/// - CRLF and CR become LF, as Jinja2's lexer does;
/// - `{% generation %}…{% endgeneration %}` becomes a filter block inside `with`, so that a `set` does not leak, as in Jinja2;
///   the tag's own `-` and `+` stay on the outer edges, so white space is controlled as before;
/// - `{% for x in EXPR %}` becomes `{% for x in (EXPR)|iterate %}`;
/// - `X[a:b]` and `X[a:b:c]` become `(X|slice(a, b, c))`;
/// - `{% with a = X, b = Y %}` sets all values under names of its own first: `Y` does not see the new `a`;
/// - `+X` becomes `X`, and `X ~ Y` becomes `X|string ~ Y|string`;
/// - escapes in strings become those that minijinja reads as Python does;
/// - `{% raw %}` becomes `{% raw +%}`: a line end behind it stays;
/// - `{% set ns.x = EXPR %}` becomes `{% set ns.x = ((EXPR)|kept) if ns is defined %}`: minijinja's macros see only outer
///   variables that they read.
pub fn rewrite(source: &str) -> Rewritten {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + 64);
    let mut has_generation = false;
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') => tag_end(rest, "}}"),
            Some(b'%') => tag_end(rest, "%}"),
            _ => 1,
        };
        let (tag, behind) = rest.split_at(end);
        rest = behind;
        if tag.starts_with("{{") && tag.ends_with("}}") && tag.len() >= 4 {
            out.push_str(&format!("{{{{{}}}}}", expression(&tag[2..tag.len() - 2])));
            continue;
        }
        if !tag.starts_with("{%") || !tag.ends_with("%}") || tag.len() < 4 {
            out.push_str(tag);
            continue;
        }
        let inner = &tag[2..tag.len() - 2];
        let body = inner.trim_start_matches(['-', '+']);
        let left = &inner[..inner.len() - body.len()];
        let code = body.trim_end_matches(['-', '+']);
        let right = &body[code.len()..];
        let code = expression(code);
        match code.split_whitespace().next() {
            Some("raw") => {
                let end = end_of_raw(rest);
                let right = if right.is_empty() { "+" } else { right };
                out.push_str(&format!("{{%{left}{code}{right}%}}"));
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            Some("generation") => {
                has_generation = true;
                out.push_str(&format!(
                    "{{%{left} with %}}{{% filter {GENERATION} {right}%}}"
                ));
            }
            Some("endgeneration") => {
                out.push_str(&format!("{{%{left} endfilter %}}{{% endwith {right}%}}"))
            }
            Some("for") => out.push_str(&format!("{{%{left}{}{right}%}}", checked_for(&code))),
            Some("with") => {
                out.push_str(&format!("{{%{left}{}{right}%}}", simultaneous_with(&code)))
            }
            Some("set") => out.push_str(&format!("{{%{left}{}{right}%}}", visible_set(&code))),
            _ => out.push_str(&format!("{{%{left}{code}{right}%}}")),
        }
    }
    out.push_str(rest);
    Rewritten {
        source: out,
        has_generation,
    }
}

/// Index just behind `close`, which strings inside the tag may contain.
fn tag_end(tag: &str, close: &str) -> usize {
    let bytes = tag.as_bytes();
    let mut i = 2;
    while i < bytes.len() {
        match bytes[i] {
            b'\'' | b'"' => i = string_end(bytes, i),
            _ if bytes[i..].starts_with(close.as_bytes()) => return i + close.len(),
            _ => i += 1,
        }
    }
    tag.len()
}

/// Index just behind the string literal that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < bytes.len() && bytes[i] != bytes[start] {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

/// Index of the `{% endraw %}` tag.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let at = from + at;
        let name = text[at + 2..].trim_start_matches(['-', '+']).trim_start();
        if name.starts_with("endraw") {
            return at;
        }
        from = at + 2;
    }
    text.len()
}

/// What stands inside a tag, with Python's strings, slices and texts of what `~` joins.
fn expression(code: &str) -> String {
    sliced(&joined(&with_python_strings(code)))
}

/// What `~` may join, from its first byte in what is written.
#[derive(Default)]
struct Operand {
    start: usize,
    is_behind_tilde: bool,
    /// Numbers and booleans, which are printed alike: a filter would bind to the last of a product, or to what a test is given.
    is_plain: bool,
}

/// minijinja joins lists and objects as JSON, so each operand of `~` becomes `X|string`.
fn joined(code: &str) -> String {
    if !code.contains('~') {
        return code.to_string();
    }
    let bytes = code.as_bytes();
    let mut out = String::with_capacity(2 * code.len());
    let mut outer: Vec<Operand> = Vec::new();
    let mut operand = Operand::default();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        i += 1;
        let ends = match bytes[start] {
            b'\'' | b'"' => {
                i = string_end(bytes, start);
                false
            }
            c if is_part_of_word(c) => {
                while i < bytes.len() && is_part_of_word(bytes[i]) {
                    i += 1;
                }
                let (word, text) = (&code[start..i], out[operand.start..].trim_end());
                operand.is_plain |= word == "is";
                let is_of_test = text.ends_with(" is") || text.ends_with(" is not");
                is_operator(word) && word != "is" && !is_of_test && !text.ends_with('.')
            }
            b'(' | b'[' | b'{' => {
                out.push_str(&code[start..i]);
                let inner = Operand {
                    start: out.len(),
                    ..Default::default()
                };
                outer.push(std::mem::replace(&mut operand, inner));
                continue;
            }
            b')' | b']' | b'}' => {
                end_operand(&mut out, &operand);
                operand = outer.pop().unwrap_or_default();
                false
            }
            b'*' | b'/' | b'%' => {
                operand.is_plain = true;
                false
            }
            // A sign belongs to its number.
            b'+' | b'-' => {
                let text = out[operand.start..].trim_end();
                !text.is_empty() && !text.ends_with(['*', '/', '%'])
            }
            b'~' => {
                operand.is_behind_tilde = true;
                true
            }
            c => matches!(c, b',' | b':' | b'=' | b'<' | b'>' | b'!'),
        };
        if ends {
            end_operand(&mut out, &operand);
        }
        out.push_str(&code[start..i]);
        if ends {
            operand = Operand {
                start: out.len(),
                is_behind_tilde: bytes[start] == b'~',
                is_plain: false,
            };
        }
    }
    end_operand(&mut out, &operand);
    out
}

fn end_operand(out: &mut String, operand: &Operand) {
    let text = out[operand.start..].trim();
    let is_literal = text.starts_with(['\'', '"']) && string_end(text.as_bytes(), 0) == text.len();
    if operand.is_behind_tilde && !operand.is_plain && !is_literal && !text.is_empty() {
        out.insert_str(out.trim_end().len(), "|string");
    }
}

fn with_python_strings(code: &str) -> String {
    let bytes = code.as_bytes();
    let mut out = String::with_capacity(code.len());
    let (mut i, mut copied) = (0, 0);
    while i < bytes.len() {
        if !matches!(bytes[i], b'\'' | b'"') {
            i += 1;
            continue;
        }
        let end = string_end(bytes, i);
        out.push_str(&code[copied..i]);
        out.push_str(&with_python_escapes(&code[i..end]));
        (i, copied) = (end, end);
    }
    out + &code[copied..]
}

/// minijinja does not know `\a`, `\v`, `\U0001F600` and a line that goes on, and takes `\/` for an escape.
fn with_python_escapes(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(escape) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        let code_point = rest.get(1..9).filter(|_| escape == 'U');
        let code_point = code_point.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match (escape, code_point.and_then(char::from_u32)) {
            ('U', Some(c)) => {
                if matches!(c, '\'' | '"' | '\\') {
                    out.push('\\');
                }
                out.push(c);
                rest = &rest[9..];
                continue;
            }
            ('\n', _) => {}
            ('a', _) => out.push_str("\\x07"),
            ('v', _) => out.push_str("\\x0b"),
            ('/', _) => out.push_str("\\\\/"),
            _ => out.extend(['\\', escape]),
        }
        rest = &rest[escape.len_utf8()..];
    }
    out + rest
}

/// An open bracket. Places are those in what is written.
struct Bracket {
    at: usize,
    /// Where the operand begins that the bracket belongs to: of a call, an item, a slice.
    operand: Option<usize>,
    colons: Vec<usize>,
}

/// A tag with as many has more parts than `render.rs` takes, and rewriting a million of them would have no end.
const MOST_SLICES: usize = 100;

/// Slices, as calls of a filter.
fn sliced(code: &str) -> String {
    let bytes = code.as_bytes();
    let mut out = String::with_capacity(code.len());
    let mut open: Vec<Bracket> = Vec::new();
    let mut slices = 0;
    // Where the operand begins that has just ended, and where the one begins that a dot goes on with.
    let (mut operand, mut dotted) = (None, None);
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let begin = out.len();
        i += 1;
        match bytes[start] {
            b'\'' | b'"' => {
                i = string_end(bytes, start);
                operand = operand.or(Some(begin));
            }
            c if is_part_of_word(c) => {
                while i < bytes.len() && is_part_of_word(bytes[i]) {
                    i += 1;
                }
                let word = &code[start..i];
                operand = dotted.take().or(Some(begin).filter(|_| !is_operator(word)));
            }
            b'.' => dotted = operand.take(),
            b'(' | b'[' | b'{' => open.push(Bracket {
                at: begin,
                operand: operand.take(),
                colons: Vec::new(),
            }),
            b':' => {
                operand = None;
                if let Some(bracket) = open.last_mut() {
                    bracket.colons.push(begin);
                }
            }
            b')' | b']' | b'}' => {
                operand = Some(begin);
                if let Some(bracket) = open.pop() {
                    operand = bracket.operand.or(Some(bracket.at));
                    if let (b']', Some(operand), 1..=2, 0..MOST_SLICES) =
                        (bytes[start], bracket.operand, bracket.colons.len(), slices)
                    {
                        slices += 1;
                        let mut from = bracket.at;
                        let mut parts = Vec::new();
                        for to in bracket.colons.into_iter().chain([begin]) {
                            let part = out[from + 1..to].trim();
                            parts.push(if part.is_empty() { "none" } else { part });
                            from = to;
                        }
                        let sliced = &out[operand..bracket.at];
                        let call = format!("({sliced}|{SLICE}({}))", parts.join(", "));
                        out.truncate(operand);
                        out.push_str(&call);
                        continue;
                    }
                }
            }
            b' ' | b'\t' | b'\n' => {}
            // A sign that changes nothing. In front of everything it is about white space.
            b'+' if operand.is_none() && start > 0 => continue,
            _ => (operand, dotted) = (None, None),
        }
        out.push_str(&code[start..i]);
    }
    out
}

fn is_part_of_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

/// Words behind which a bracket begins an operand of its own.
fn is_operator(word: &str) -> bool {
    matches!(
        word,
        "in" | "not" | "and" | "or" | "is" | "if" | "elif" | "else" | "recursive"
    )
}

fn checked_for(code: &str) -> String {
    let words = words_outside_brackets(code);
    let Some(position) = words.iter().position(|(_, word)| *word == "in") else {
        return code.to_string(); // minijinja reports the syntax error
    };
    let start = words[position].0 + 2;
    let behind = words[position + 1..]
        .iter()
        .find(|(_, word)| matches!(*word, "if" | "recursive"));
    let end = behind.map_or(code.len(), |(at, _)| *at);
    format!(
        "{} ({})|{ITERATE} {}",
        &code[..start],
        code[start..end].trim(),
        &code[end..]
    )
}

fn simultaneous_with(code: &str) -> String {
    let (word, assignments) = code.split_at(code.find("with").map_or(0, |at| at + 4));
    let pairs = split_at_commas(assignments).into_iter();
    let pairs: Option<Vec<(&str, &str)>> = pairs.map(|pair| pair.split_once('=')).collect();
    let Some(pairs) = pairs.filter(|pairs| pairs.len() > 1) else {
        return code.to_string(); // minijinja reports a syntax error
    };
    let values = (0..pairs.len()).map(|i| format!("__luthier_value_{i}"));
    let set = pairs.iter().zip(values.clone());
    let mut set: Vec<_> = set
        .map(|((_, value), own)| format!("{own} ={value}"))
        .collect();
    set.extend(
        pairs
            .iter()
            .zip(values)
            .map(|((name, _), own)| format!("{} = {own}", name.trim())),
    );
    format!("{word} {} ", set.join(", "))
}

/// Parts between commas outside strings and brackets.
fn split_at_commas(code: &str) -> Vec<&str> {
    let bytes = code.as_bytes();
    let (mut i, mut start, mut depth) = (0, 0, 0);
    let mut parts = Vec::new();
    while i < bytes.len() {
        match bytes[i] {
            b'\'' | b'"' => {
                i = string_end(bytes, i);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&code[start..i]);
                start = i + 1;
            }
            _ => {}
        }
        i += 1;
    }
    parts.push(&code[start..]);
    parts
}

fn visible_set(code: &str) -> String {
    let Some((target, value)) = code.split_once('=') else {
        return code.to_string(); // {% set x %}…{% endset %}
    };
    let place = target.trim().trim_start_matches("set").trim();
    match place.split_once('.') {
        // A filter of a block, `{% set x | replace('.', '=') %}`, is no target.
        Some((namespace, _)) if namespace.bytes().all(is_part_of_word) => format!(
            "{target}= (({})|{KEPT}) if {namespace} is defined ",
            value.trim()
        ),
        _ => code.to_string(),
    }
}

/// Words outside strings and brackets, each with its index.
fn words_outside_brackets(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let (mut i, mut depth) = (0, 0);
    let mut words = Vec::new();
    while i < bytes.len() {
        match bytes[i] {
            b'\'' | b'"' => i = string_end(bytes, i),
            b'(' | b'[' | b'{' => (i, depth) = (i + 1, depth + 1),
            b')' | b']' | b'}' => (i, depth) = (i + 1, depth - 1),
            c if c == b'_' || c.is_ascii_alphanumeric() => {
                let start = i;
                while i < bytes.len() && (bytes[i] == b'_' || bytes[i].is_ascii_alphanumeric()) {
                    i += 1;
                }
                if depth == 0 {
                    words.push((start, &code[start..i]));
                }
            }
            _ => i += 1,
        }
    }
    words
}
