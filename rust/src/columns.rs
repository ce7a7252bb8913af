//! The columns of a Parquet file as rows: the JSON object that a row stands for, written from the levels and values of its
//! columns.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::reader::{get_column_reader, ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::Result;
use parquet::schema::types::{ColumnDescPtr, Type};

use crate::pages::{damaged, refused, Pages};

const ROW_FIELDS: [&str; 9] = [
    "messages",
    "tools",
    "chat_template_kwargs",
    "prompt",
    "completion",
    "text",
    "input_ids",
    "labels",
    "attention_mask",
];

/// A value of a row. It is null where the definition level of its columns is below `level`. `leaf` is one of its columns.
struct Node {
    level: i16,
    leaf: usize,
    kind: Kind,
}

enum Kind {
    Value,
    Object(Vec<Field>),
    /// Empty where the definition level is below `element_level`; `repetition` is the level of all elements but the first.
    List {
        element: Box<Node>,
        element_level: i16,
        repetition: i16,
    },
}

struct Field {
    key: Vec<u8>, // as it is written: `"role":`
    value: Node,
    /// Write `null` where it is null. A column cannot say whether a field is null or not there at all; the content of a
    /// message that only calls tools is written as null, and all other fields are not written.
    keeps_null: bool,
}

/// The fields of a row, and which columns they are made of.
pub struct Schema {
    fields: Vec<Field>,
    pub leaves: Vec<usize>,
}

/// Columns whose values JSON has no form for (bytes, dates) are left out where no row would read them.
pub fn schema_of(root: &Type) -> Result<Schema> {
    let mut tree = Tree::default();
    let fields = tree.fields(root, 0, 0)?;
    if fields.is_empty() {
        return Err(refused(
            "it has no column of text, numbers, lists or structs".to_string(),
        ));
    }
    Ok(Schema {
        fields,
        leaves: tree.leaves,
    })
}

#[derive(Default)]
struct Tree {
    path: Vec<String>, // of field names, without the groups that make a list
    columns: usize,
    leaves: Vec<usize>,
}

impl Tree {
    fn fields(&mut self, group: &Type, level: i16, repetition: i16) -> Result<Vec<Field>> {
        let mut fields = Vec::new();
        for field in group.get_fields() {
            self.path.push(field.name().to_string());
            if let Some(value) = self.field(field, level, repetition)? {
                let mut key = serde_json::to_vec(field.name()).unwrap_or_default();
                key.push(b':');
                let keeps_null = self.path == ["messages", "content"];
                fields.push(Field {
                    key,
                    value,
                    keeps_null,
                });
            }
            self.path.pop();
        }
        Ok(fields)
    }

    /// `level`, `repetition`: where what is around `field` is there.
    fn field(&mut self, field: &Type, level: i16, repetition: i16) -> Result<Option<Node>> {
        match field.get_basic_info().repetition() {
            Repetition::REQUIRED => self.value(field, level, repetition),
            Repetition::OPTIONAL => self.value(field, level + 1, repetition),
            Repetition::REPEATED => {
                let element = self.value(field, level + 1, repetition + 1)?;
                Ok(element.map(|element| list(element, level, repetition)))
            }
        }
    }

    /// `level`: where `field` itself is there.
    fn value(&mut self, field: &Type, level: i16, repetition: i16) -> Result<Option<Node>> {
        if field.is_primitive() {
            return self.leaf(field, level);
        }
        let info = field.get_basic_info();
        match (info.logical_type_ref(), info.converted_type()) {
            (Some(LogicalType::List), _) | (_, ConvertedType::LIST) => {
                let element = self.element(field, level + 1, repetition + 1)?;
                Ok(element.map(|element| list(element, level, repetition)))
            }
            (Some(LogicalType::Map), _)
            | (_, ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE) => {
                let before = self.leaves.len();
                self.fields(field, level, repetition)?;
                self.leaves.truncate(before); // they were only to be counted
                self.no_json_form("is a map".to_string())
            }
            _ => {
                let fields = self.fields(field, level, repetition)?;
                Ok(fields
                    .first()
                    .map(|first| first.value.leaf)
                    .map(|leaf| Node {
                        level,
                        leaf,
                        kind: Kind::Object(fields),
                    }))
            }
        }
    }

    /// The element of an annotated list. The repeated group around it is an element itself in files of old writers: where it
    /// has several fields, or one of the names that the format's document gives.
    fn element(&mut self, field: &Type, level: i16, repetition: i16) -> Result<Option<Node>> {
        let [repeated] = field.get_fields() else {
            return Err(damaged("a list of its schema has not one kind of element"));
        };
        if repeated.get_basic_info().repetition() != Repetition::REPEATED {
            return Err(damaged("a list of its schema is not repeated"));
        }
        let name = repeated.name();
        let old = name == "array" || name == format!("{}_tuple", field.name());
        if repeated.is_group() && repeated.get_fields().len() == 1 && !old {
            return self.field(&repeated.get_fields()[0], level, repetition);
        }
        self.value(repeated, level, repetition)
    }

    fn leaf(&mut self, field: &Type, level: i16) -> Result<Option<Node>> {
        let leaf = self.columns;
        self.columns += 1;
        if has_json_form(field) {
            self.leaves.push(leaf);
            return Ok(Some(Node {
                level,
                leaf,
                kind: Kind::Value,
            }));
        }
        let info = field.get_basic_info();
        let annotation = match info.logical_type_ref() {
            Some(logical) => format!("{logical:?}"),
            None => info.converted_type().to_string(),
        };
        let physical = field.get_physical_type();
        self.no_json_form(format!("holds {physical} ({annotation})"))
    }

    fn no_json_form(&self, what: String) -> Result<Option<Node>> {
        if !ROW_FIELDS.contains(&self.path[0].as_str()) {
            return Ok(None);
        }
        let column = self.path.join(".");
        Err(refused(format!(
            "its column `{column}` {what}, which a row cannot have; make it text, a number or a struct, or leave it out"
        )))
    }
}

fn list(element: Node, level: i16, repetition: i16) -> Node {
    Node {
        level,
        leaf: element.leaf,
        kind: Kind::List {
            element: Box::new(element),
            element_level: level + 1,
            repetition: repetition + 1,
        },
    }
}

fn has_json_form(field: &Type) -> bool {
    use ConvertedType as C;
    use LogicalType as L;
    let info = field.get_basic_info();
    let (logical, converted) = (info.logical_type_ref(), info.converted_type());
    let integer = matches!(logical, None | Some(L::Integer(_)) | Some(L::Unknown))
        && (converted == C::NONE || is_unsigned(field) || is_signed(converted));
    match field.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 | Physical::INT64 => integer,
        Physical::BYTE_ARRAY => {
            matches!(logical, Some(L::String | L::Json | L::Enum))
                || matches!(converted, C::UTF8 | C::JSON | C::ENUM)
        }
        _ => false,
    }
}

fn is_signed(converted: ConvertedType) -> bool {
    use ConvertedType as C;
    matches!(converted, C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64)
}

fn is_unsigned(field: &Type) -> bool {
    use ConvertedType as C;
    let info = field.get_basic_info();
    let logical =
        matches!(info.logical_type_ref(), Some(LogicalType::Integer(int)) if !int.is_signed);
    let converted = info.converted_type();
    logical || matches!(converted, C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64)
}

/// Values of a column, those of one row at a time.
enum Values {
    Bool(ColumnReaderImpl<BoolType>, Vec<bool>),
    Int32(ColumnReaderImpl<Int32Type>, Vec<i32>),
    Int64(ColumnReaderImpl<Int64Type>, Vec<i64>),
    Float(ColumnReaderImpl<FloatType>, Vec<f32>),
    Double(ColumnReaderImpl<DoubleType>, Vec<f64>),
    Text(ColumnReaderImpl<ByteArrayType>, Vec<ByteArray>),
}

pub struct Column {
    values: Values,
    unsigned: bool,
    max_definition: i16,
    max_repetition: i16,
    values_of_row: Arc<AtomicUsize>, // see Pages::new
    // Of the row that was read last.
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    levels: usize,
    at: usize,       // the next level
    value_at: usize, // the value that it stands for, if it stands for one
}

impl Column {
    pub fn new(
        descriptor: ColumnDescPtr,
        pages: Pages,
        values_of_row: Arc<AtomicUsize>,
    ) -> Result<Self> {
        let (max_definition, max_repetition) =
            (descriptor.max_def_level(), descriptor.max_rep_level());
        let unsigned = is_unsigned(descriptor.self_type());
        let values = match get_column_reader(descriptor, Box::new(pages)) {
            ColumnReader::BoolColumnReader(reader) => Values::Bool(reader, Vec::new()),
            ColumnReader::Int32ColumnReader(reader) => Values::Int32(reader, Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => Values::Int64(reader, Vec::new()),
            ColumnReader::FloatColumnReader(reader) => Values::Float(reader, Vec::new()),
            ColumnReader::DoubleColumnReader(reader) => Values::Double(reader, Vec::new()),
            ColumnReader::ByteArrayColumnReader(reader) => Values::Text(reader, Vec::new()),
            _ => return Err(damaged("a column is of another type than its schema")),
        };
        Ok(Column {
            values,
            unsigned,
            max_definition,
            max_repetition,
            values_of_row,
            definitions: Vec::new(),
            repetitions: Vec::new(),
            levels: 0,
            at: 0,
            value_at: 0,
        })
    }

    /// Goes to the next row, and says how many values it has, nulls included; None at the end.
    pub fn next_row(&mut self) -> Result<Option<usize>> {
        self.definitions.clear();
        self.repetitions.clear();
        (self.at, self.value_at) = (0, 0);
        self.values_of_row.store(0, Relaxed);
        let levels = (Some(&mut self.definitions), Some(&mut self.repetitions));
        macro_rules! read {
            ($reader:expr, $values:expr) => {{
                $values.clear();
                $reader.read_records(1, levels.0, levels.1, $values)?
            }};
        }
        let (rows, _, levels) = match &mut self.values {
            Values::Bool(reader, values) => read!(reader, values),
            Values::Int32(reader, values) => read!(reader, values),
            Values::Int64(reader, values) => read!(reader, values),
            Values::Float(reader, values) => read!(reader, values),
            Values::Double(reader, values) => read!(reader, values),
            Values::Text(reader, values) => read!(reader, values),
        };
        self.levels = levels;
        Ok((rows > 0).then_some(levels))
    }

    pub fn is_at_end_of_row(&self) -> bool {
        self.at == self.levels
    }

    fn definition(&self) -> Result<i16> {
        if self.at >= self.levels {
            return Err(damaged("its columns have not the same rows"));
        }
        Ok(if self.max_definition == 0 {
            0
        } else {
            self.definitions[self.at]
        })
    }

    /// 0 at the end of the row, as it is where the next one begins.
    fn repetition(&self) -> i16 {
        if self.max_repetition == 0 || self.at >= self.levels {
            return 0;
        }
        self.repetitions[self.at]
    }

    fn advance(&mut self) -> Result<()> {
        self.value_at += usize::from(self.definition()? == self.max_definition);
        self.at += 1;
        Ok(())
    }

    /// Whether the value is not null, but one that JSON cannot write: not a number, or infinite.
    fn is_no_json(&self) -> bool {
        match &self.values {
            Values::Float(_, values) => !values[self.value_at].is_finite(),
            Values::Double(_, values) => !values[self.value_at].is_finite(),
            _ => false,
        }
    }

    fn write(&self, line: &mut Line) {
        let at = self.value_at;
        match &self.values {
            Values::Bool(_, values) => line.number(values[at]),
            Values::Int32(_, values) if self.unsigned => line.number(values[at] as u32),
            Values::Int32(_, values) => line.number(values[at]),
            Values::Int64(_, values) if self.unsigned => line.number(values[at] as u64),
            Values::Int64(_, values) => line.number(values[at]),
            Values::Float(_, values) => line.float(values[at].into()),
            Values::Double(_, values) => line.float(values[at]),
            Values::Text(_, values) => line.text(values[at].data()),
        }
    }
}

/// The columns of a row group, by their number; those that no row reads are not there.
pub type Columns = Vec<Option<Column>>;

fn column(columns: &mut Columns, leaf: usize) -> Result<&mut Column> {
    let column = columns.get_mut(leaf).and_then(Option::as_mut);
    column.ok_or_else(|| damaged("a row group lacks a column"))
}

/// Text at the end of a buffer, of which nothing is kept behind `end`.
pub struct Line<'a> {
    text: &'a mut Vec<u8>,
    end: usize,
}

impl<'a> Line<'a> {
    pub fn new(text: &'a mut Vec<u8>, max_bytes: usize) -> Self {
        let end = text.len() + max_bytes;
        Line { text, end }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.end - self.text.len();
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn number(&mut self, number: impl std::fmt::Display) {
        let _ = write!(self, "{number}");
    }

    fn float(&mut self, number: f64) {
        let _ = serde_json::to_writer(self, &number);
    }

    /// What is not UTF-8 is for the reader of the line to find and to name. A line break in it would end the line.
    fn text(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                let _ = serde_json::to_writer(self, text);
            }
            Err(_) => {
                let mut separator = b"\"";
                for part in bytes.split(|&byte| byte == b'\n') {
                    self.push(separator);
                    self.push(part);
                    separator = b" ";
                }
                self.push(b"\"");
            }
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes the row that the columns are at, as one object of JSON.
pub fn write_row(schema: &Schema, columns: &mut Columns, line: &mut Line) -> Result<()> {
    write_object(&schema.fields, columns, line)
}

fn write_object(fields: &[Field], columns: &mut Columns, line: &mut Line) -> Result<()> {
    let mut separator: &[u8] = b"{";
    for field in fields {
        let is_null = is_null(&field.value, columns)?;
        if is_null && !field.keeps_null {
            skip(&field.value, columns)?;
            continue;
        }
        line.push(separator);
        line.push(&field.key);
        write(&field.value, columns, line)?;
        separator = b",";
    }
    if separator == b"{" {
        line.push(separator);
    }
    line.push(b"}");
    Ok(())
}

fn is_null(node: &Node, columns: &mut Columns) -> Result<bool> {
    let column = column(columns, node.leaf)?;
    let is_value = matches!(node.kind, Kind::Value);
    Ok(column.definition()? < node.level || (is_value && column.is_no_json()))
}

fn write(node: &Node, columns: &mut Columns, line: &mut Line) -> Result<()> {
    if is_null(node, columns)? {
        line.push(b"null");
        return skip(node, columns);
    }
    match &node.kind {
        Kind::Value => {
            let column = column(columns, node.leaf)?;
            column.write(line);
            column.advance()
        }
        Kind::Object(fields) => write_object(fields, columns, line),
        Kind::List {
            element,
            element_level,
            repetition,
        } => {
            line.push(b"[");
            if column(columns, node.leaf)?.definition()? < *element_level {
                skip(element, columns)?;
            } else {
                write(element, columns, line)?;
                while column(columns, node.leaf)?.repetition() == *repetition {
                    line.push(b",");
                    write(element, columns, line)?;
                }
            }
            line.push(b"]");
            Ok(())
        }
    }
}

/// Goes past a value that is null or an empty list: each of its columns has one level for it.
fn skip(node: &Node, columns: &mut Columns) -> Result<()> {
    match &node.kind {
        Kind::Value => column(columns, node.leaf)?.advance(),
        Kind::Object(fields) => fields
            .iter()
            .try_for_each(|field| skip(&field.value, columns)),
        Kind::List { element, .. } => skip(element, columns),
    }
}
