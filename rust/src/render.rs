//! Chat templates, rendered as transformers renders them.

use std::cell::RefCell;
use std::io;

use minijinja::machinery::{tokenize, Span, Token, WhitespaceConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use crate::source::{rewrite, GENERATION};
use crate::{python, values};

/// A conversation of a few megabytes takes well below a million instructions; a template that loops for ever stops here.
const FUEL: u64 = 50_000_000;
/// Longer than any context. It bounds what is written, not the values that a template keeps: those can take all memory, or
/// a stack that is too deep to free them, and that ends the process. So luthierd renders in one of its own (`server/rows`).
const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// minijinja's parser and compiler call themselves for each operator of an expression and for each `elif`, without a limit, so
/// that fifty thousand `not`s end the process. Of 279 published templates none has more than 55 parts in a tag, or 22 `elif`s.
const MOST_PARTS: usize = 1000;

const NAME: &str = "chat_template";

pub struct ChatTemplate {
    env: Environment<'static>,
    special_tokens: Map<String, Json>,
    pub has_generation: bool,
}

pub struct Rendered {
    pub text: String,
    /// What generation blocks wrote, and the length of the text when they did.
    pub generation: Vec<(usize, String)>,
}

impl Rendered {
    /// Whether every block stands in the text where it was written.
    pub fn in_place(&self) -> bool {
        self.generation.iter().all(|(start, block)| {
            let behind = self.text.as_bytes().get(*start..);
            behind.is_some_and(|text| text.starts_with(block.as_bytes()))
        })
    }
}

/// State of the render that runs on this thread; templates run on one thread from start to end.
#[derive(Default)]
struct Rendering {
    written: usize,
    generation: Vec<(usize, String)>,
    raised: Option<String>,
    now: Moment,
}

thread_local! {
    static RENDERING: RefCell<Rendering> = RefCell::default();
}

/// The root output. `written` tells a generation block where in the text it begins.
struct CountedOutput(Vec<u8>);

impl io::Write for CountedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("output is too long"));
        }
        self.0.extend_from_slice(bytes);
        RENDERING.with_borrow_mut(|rendering| rendering.written = self.0.len());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ChatTemplate {
    pub fn compile(source: &str, special_tokens: &str) -> Result<Self, String> {
        let special_tokens = match serde_json::from_str(special_tokens) {
            Ok(Json::Object(object)) => object,
            _ => return Err("special tokens are not a JSON object".into()),
        };
        let rewritten = rewrite(source);
        check_tags(&rewritten.source)?;
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_keep_trailing_newline(false);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        python::install(&mut env);
        env.add_filter(GENERATION, generation);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, rewritten.source)
            .map_err(describe)?;
        Ok(ChatTemplate {
            env,
            special_tokens,
            has_generation: rewritten.has_generation,
        })
    }

    pub fn render(&self, request: &str) -> Result<Rendered, String> {
        let request: Json =
            serde_json::from_str(request).map_err(|e| format!("bad request: {e}"))?;
        let now = Moment::parse(request["now"].as_str().unwrap_or(DEFAULT_NOW))?;
        RENDERING.set(Rendering {
            now,
            ..Default::default()
        });
        let template = self.env.get_template(NAME).map_err(describe)?;
        let mut output = CountedOutput(Vec::new());
        let result = template.render_captured_to(self.variables(&request), &mut output);
        let rendering = RENDERING.take();
        match (result, rendering.raised) {
            (Err(_), Some(message)) => Err(message),
            (Err(error), None) => Err(describe(error)),
            (Ok(_), _) => Ok(Rendered {
                text: String::from_utf8(output.0).map_err(|e| e.to_string())?,
                generation: rendering.generation,
            }),
        }
    }

    fn variables(&self, request: &Json) -> Value {
        let keep_nulls = request["api"] == "render_jinja_template";
        let mut variables = Map::new();
        let messages = request["messages"].as_array().into_iter().flatten();
        let messages = messages
            .map(|message| prepared_message(message, keep_nulls))
            .collect();
        variables.insert("messages".into(), Json::Array(messages));
        for name in ["tools", "documents"] {
            variables.insert(name.into(), request[name].clone());
        }
        let add_prompt = request["add_generation_prompt"].as_bool().unwrap_or(false);
        variables.insert("add_generation_prompt".into(), add_prompt.into());
        variables.extend(self.special_tokens.clone());
        if let Some(kwargs) = request["kwargs"].as_object() {
            variables.extend(kwargs.clone());
        }
        Value::from_serialize(Json::Object(variables))
    }
}

/// What the lexer does not take is reported by the parser, which comes to it after what is counted here.
fn check_tags(source: &str) -> Result<(), String> {
    let (mut parts, mut branches) = (0, 0);
    let mut open: Vec<&str> = Vec::new();
    let tokens = tokenize(
        source,
        false,
        SyntaxConfig::default(),
        WhitespaceConfig::default(),
    );
    let tokens: Vec<_> = tokens.map_while(Result::ok).collect();
    for (i, (token, span)) in tokens.iter().enumerate() {
        let line = span.start_line;
        match token {
            Token::BlockStart => {
                parts = 0;
                follow_blocks(&tokens[i + 1..], &mut open)
                    .map_err(|what| format!("chat template, line {line}: {what}"))?;
            }
            Token::VariableStart => parts = 0,
            Token::Ident("elif") => branches += 1,
            _ => parts += 1,
        }
        if parts.max(branches) > MOST_PARTS {
            return Err(format!(
                "chat template, line {line}: has more than {MOST_PARTS} {}; make it simpler",
                if parts > MOST_PARTS {
                    "parts in one tag"
                } else {
                    "`elif`s"
                }
            ));
        }
    }
    Ok(())
}

/// Keeps in `open` what the tag that `tokens` begin with stands in. Where `break` leaves a loop from within a block that holds
/// variables or catches text, minijinja does not leave that block: what follows would be lost, or end the render.
fn follow_blocks<'a>(tokens: &[(Token<'a>, Span)], open: &mut Vec<&'a str>) -> Result<(), String> {
    let Some((Token::Ident(name), _)) = tokens.first() else {
        return Ok(());
    };
    let inside = open.last().copied().unwrap_or("for");
    match *name {
        "for" | "with" | "filter" | "call" | "macro" => open.push(name),
        "set" => {
            let mut behind = tokens.iter().map(|(token, _)| token);
            let first =
                behind.find(|token| matches!(token, Token::Assign | Token::Pipe | Token::BlockEnd));
            // `x = 1` ends in the tag; `x` and `x | trim` begin a block.
            if !matches!(first, Some(Token::Assign)) {
                open.push(name);
            }
        }
        "break" | "continue" if inside != "for" => {
            return Err(format!(
                "`{name}` inside `{inside}` is not supported; put the loop's `if` around the block"
            ));
        }
        _ => {
            if name.strip_prefix("end") == Some(inside) {
                open.pop();
            }
        }
    }
    Ok(())
}

/// Null keys removed, and a model's reasoning under each of the names that templates know it by.
fn prepared_message(message: &Json, keep_nulls: bool) -> Json {
    let Some(fields) = message.as_object() else {
        return message.clone();
    };
    let mut fields = fields.clone();
    if !keep_nulls {
        fields.retain(|_, value| !value.is_null());
    }
    let names = ["reasoning_content", "thinking", "reasoning"];
    let reasoning = names
        .iter()
        .find_map(|name| fields.get(*name).filter(|v| !v.is_null()).cloned());
    let Some(reasoning) = reasoning else {
        return Json::Object(fields);
    };
    let mut prepared = Map::new();
    prepared.insert("thinking".into(), reasoning.clone());
    prepared.extend(fields);
    prepared.insert("reasoning_content".into(), reasoning);
    Json::Object(prepared)
}

/// Notes where a `{% generation %}` block stands in the text. As in transformers, that is the length of the root output so far,
/// which inside a macro is not where the text ends up: see `Rendered::in_place`.
fn generation(text: String) -> String {
    RENDERING.with_borrow_mut(|rendering| {
        let start = rendering.written;
        rendering.generation.push((start, text.clone()));
    });
    text
}

fn raise_exception(args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let message = match args.first() {
        Some(message) => message.clone(),
        None => kwargs.get("message")?,
    };
    let message = values::str_of(&message);
    RENDERING.with_borrow_mut(|rendering| rendering.raised = Some(message.clone()));
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`
fn strftime_now(format: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let format: String = match format {
        Some(format) => format,
        None => kwargs.get("format")?,
    };
    kwargs.assert_all_used()?;
    Ok(RENDERING.with_borrow(|rendering| rendering.now.format(&format)))
}

fn describe(error: Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    error.line().map_or(what.clone(), |line| {
        format!("chat template, line {line}: {what}")
    })
}

const DEFAULT_NOW: &str = "2024-07-26T12:34:56";

#[derive(Default)]
struct Moment {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    /// "YYYY-MM-DDTHH:MM:SS"
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<i64> = text
            .split(['-', 'T', ':'])
            .filter_map(|part| part.parse().ok())
            .collect();
        match parts[..] {
            [year, month @ 1..=12, day @ 1..=31, hour @ 0..=23, minute @ 0..=59, second @ 0..=60] => {
                Ok(Moment {
                    year,
                    month,
                    day,
                    hour,
                    minute,
                    second,
                })
            }
            _ => Err(format!("now = '{text}' is not YYYY-MM-DDTHH:MM:SS")),
        }
    }

    fn day_of_year(&self) -> i64 {
        let leap = (self.year % 4 == 0 && self.year % 100 != 0) || self.year % 400 == 0;
        let before =
            [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][self.month as usize - 1];
        before + self.day + i64::from(leap && self.month > 2)
    }

    /// 0 is Sunday.
    fn weekday(&self) -> i64 {
        let year = self.year - 1;
        (year + year / 4 - year / 100 + year / 400 + self.day_of_year()) % 7
    }

    /// Year and week of ISO 8601: a week belongs to the year of its Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let days = |year: i64| {
            let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
            365 + i64::from(leap)
        };
        let thursday = self.day_of_year() - 1 - (self.weekday() + 6) % 7 + 3;
        if thursday < 0 {
            return (self.year - 1, (thursday + days(self.year - 1)) / 7 + 1);
        }
        if thursday >= days(self.year) {
            return (self.year + 1, 1);
        }
        (self.year, thursday / 7 + 1)
    }

    /// Weeks that have begun since the first day of the year that is `first` (0 is Sunday).
    fn week(&self, first: i64) -> i64 {
        (self.day_of_year() + 6 - (self.weekday() + 7 - first) % 7) / 7
    }

    /// C's `strftime` in the C locale, with glibc's `%-d`.
    fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut characters = format.chars();
        while let Some(c) = characters.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match characters.next() {
                Some('-') => {
                    let field = self.field(characters.next().unwrap_or('-'));
                    let short = field.trim_start_matches(['0', ' ']);
                    out.push_str(if short.is_empty() { "0" } else { short });
                }
                Some(code) => out.push_str(&self.field(code)),
                None => out.push('%'),
            }
        }
        out
    }

    fn field(&self, code: char) -> String {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        const DAYS: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
        let month = MONTHS[self.month.clamp(1, 12) as usize - 1];
        let day = DAYS[self.weekday().rem_euclid(7) as usize];
        let hour = (self.hour + 11) % 12 + 1;
        match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year()),
            'A' => day.into(),
            'a' => day[..3].into(),
            'w' => self.weekday().to_string(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => (if self.hour < 12 { "AM" } else { "PM" }).into(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' | 'X' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'c' => self.format("%a %b %e %T %Y"),
            'r' => self.format("%I:%M:%S %p"),
            'C' => format!("{:02}", self.year / 100),
            'G' => self.iso_week().0.to_string(),
            'g' => format!("{:02}", self.iso_week().0 % 100),
            'V' => format!("{:02}", self.iso_week().1),
            'U' => format!("{:02}", self.week(0)),
            'W' => format!("{:02}", self.week(1)),
            'u' => ((self.weekday() + 6) % 7 + 1).to_string(),
            'k' => format!("{:2}", self.hour),
            'l' => format!("{hour:2}"),
            'P' => (if self.hour < 12 { "am" } else { "pm" }).into(),
            'f' => "000000".into(),
            'n' => "\n".into(),
            't' => "\t".into(),
            // Of a time without a zone.
            'z' | 'Z' => String::new(),
            '%' => "%".into(),
            other => format!("%{other}"),
        }
    }
}
