//! As much of Thrift's compact protocol as it takes to see what a Parquet file says of itself, before anybody reserves
//! memory for it.

pub const I32: u8 = 5;
pub const LIST: u8 = 9;
pub const STRUCT: u8 = 12;

/// More than any footer has of row groups or columns.
const MAX_LIST: usize = 100_000;
/// Of structs and lists: those of the format are nested less deeply.
const MAX_DEPTH: usize = 16;

#[derive(Debug, PartialEq)]
pub enum Fault {
    /// The bytes end within a value.
    TooShort,
    Invalid(&'static str),
}

pub struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Input { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Reads a struct. `each` gets number and type of every field, and says whether it has read the value.
    pub fn fields(
        &mut self,
        mut each: impl FnMut(&mut Self, i16, u8) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        self.fields_within(MAX_DEPTH, &mut each)
    }

    /// Number and type of the elements of a list that follow.
    pub fn list(&mut self) -> Result<(usize, u8), Fault> {
        let head = self.byte()?;
        let size = match head >> 4 {
            15 => self.varint()?,
            size => size.into(),
        };
        match usize::try_from(size) {
            Ok(size) if size <= MAX_LIST => Ok((size, head & 15)),
            _ => Err(Fault::Invalid("a list of its metadata is too long")),
        }
    }

    /// A number of an integer type.
    pub fn integer(&mut self) -> Result<i64, Fault> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::TooShort)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(Fault::Invalid("a number of its metadata is too long"))
    }

    fn advance(&mut self, bytes: u64) -> Result<(), Fault> {
        let left = (self.bytes.len() - self.at) as u64;
        if bytes > left {
            return Err(Fault::TooShort);
        }
        self.at += bytes as usize;
        Ok(())
    }

    fn fields_within(
        &mut self,
        depth: usize,
        each: &mut dyn FnMut(&mut Self, i16, u8) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let mut id: i16 = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            id = match head >> 4 {
                0 => self.integer()? as i16,
                step => id.wrapping_add(step.into()),
            };
            if !each(self, id, head & 15)? {
                self.skip(head & 15, depth)?;
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Fault> {
        if depth == 0 {
            return Err(Fault::Invalid("its metadata is nested too deeply"));
        }
        match kind {
            1 | 2 => Ok(()), // a bool, whose type is its value
            3 => self.advance(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.advance(8),
            8 => {
                let length = self.varint()?;
                self.advance(length)
            }
            LIST | 10 => {
                let (size, kind) = self.list()?;
                (0..size).try_for_each(|_| self.skip_element(kind, depth - 1))
            }
            11 => {
                let size = self.varint()?;
                let kinds = if size > 0 { self.byte()? } else { 0 };
                for _ in 0..size {
                    self.skip_element(kinds >> 4, depth - 1)?;
                    self.skip_element(kinds & 15, depth - 1)?;
                }
                Ok(())
            }
            STRUCT => self.fields_within(depth - 1, &mut |_, _, _| Ok(false)),
            13 => self.advance(16),
            _ => Err(Fault::Invalid(
                "its metadata has a value of an unknown type",
            )),
        }
    }

    /// In a list or map a bool has a byte of its own.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Result<(), Fault> {
        self.skip(if matches!(kind, 1 | 2) { 3 } else { kind }, depth)
    }
}
