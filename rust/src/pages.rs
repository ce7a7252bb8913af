//! Pages of a column of a Parquet file. The file may come from anybody: no size in it is believed before it is compared
//! with what is there, and pages are decompressed here because the crate's own codecs have no limit.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;

use crate::thrift::{Fault, Input, I32, LIST, STRUCT};

/// Of decompressed pages of all columns at a time.
const MAX_HELD_BYTES: usize = 512 << 20;
/// A writer closes a page at about 1 MiB: at one bit a value these are 8 million.
const MAX_PAGE_VALUES: u32 = 10 << 20;
/// What is read to find a header; one has statistics, and these may have a text.
const HEADER_WINDOW: u64 = 1024;
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// A file may give as many bytes in any case.
const FREE_BYTES: u64 = 16 << 20;
/// JSON may be nested 64 deep, and a list takes two levels of a schema.
const MAX_SCHEMA_DEPTH: usize = 130;
/// What the crate's dictionary takes for a value.
const DICTIONARY_ENTRY_BYTES: usize = 32;

const DATA_PAGE: i64 = 0;
const INDEX_PAGE: i64 = 1;
const DICTIONARY_PAGE: i64 = 2;
const DATA_PAGE_V2: i64 = 3;

// Linked by cmake/rust.cmake, as lib/dataset links it.
extern "C" {
    fn ZSTD_decompress(to: *mut c_void, size: usize, from: *const c_void, len: usize) -> usize;
    fn ZSTD_isError(code: usize) -> u32;
}

/// What a file has that this reader does not take; the message is for the user as it is.
pub fn refused(message: String) -> ParquetError {
    ParquetError::NYI(message)
}

pub fn damaged(what: &str) -> ParquetError {
    ParquetError::General(what.to_string())
}

impl From<Fault> for ParquetError {
    fn from(fault: Fault) -> Self {
        damaged(match fault {
            Fault::TooShort => "its metadata ends too early",
            Fault::Invalid(what) => what,
        })
    }
}

/// The file, and what reading it has taken, by all columns together.
pub struct TableFile {
    file: File,
    pub bytes: u64,
    /// Of lines, and of pages that are read: FREE_BYTES, and so many for each of the file. Columns may name the same bytes.
    pub max_expanded: u64,
    max_row_values: usize,
    expanded: AtomicU64,
    held: AtomicUsize,
}

impl TableFile {
    pub fn new(file: File, max_expansion: u64, max_row_values: usize) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(TableFile {
            file,
            bytes,
            max_expanded: FREE_BYTES.saturating_add(bytes.saturating_mul(max_expansion)),
            max_row_values,
            expanded: AtomicU64::new(0),
            held: AtomicUsize::new(0),
        })
    }

    /// Exactly `len` bytes from `offset` on, which must be within the file.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged("it ends too early"))
            }
            Err(error) => Err(ParquetError::External(Box::new(error))),
            Ok(()) => Ok(bytes),
        }
    }

    fn count_expanded(&self, bytes: u64) -> Result<()> {
        if self.expanded.fetch_add(bytes, Relaxed) + bytes > self.max_expanded {
            return Err(refused(format!(
                "its pages have more than {} bytes, for {} of the file; give its rows as JSON lines if that is no accident",
                self.max_expanded, self.bytes
            )));
        }
        Ok(())
    }

    /// Replaces `held` of a column by `needed`.
    fn hold(&self, held: &mut usize, needed: usize) -> Result<()> {
        self.held.fetch_sub(*held, Relaxed);
        *held = needed;
        if self.held.fetch_add(needed, Relaxed) + needed > MAX_HELD_BYTES {
            return Err(refused(format!(
                "its pages take more than {MAX_HELD_BYTES} bytes at a time; write it again with pages of about a megabyte"
            )));
        }
        Ok(())
    }
}

/// The crate builds the tree of columns by recursion and reserves what an element says that it has of children.
pub fn check_footer(footer: &[u8]) -> Result<()> {
    const SCHEMA: i16 = 2;
    Input::new(footer).fields(|input, id, kind| match (id, kind) {
        (SCHEMA, LIST) => check_schema(input).map(|()| true),
        (SCHEMA, _) => Err(Fault::Invalid("it has no schema")),
        _ => Ok(false),
    })?;
    Ok(())
}

fn check_schema(input: &mut Input) -> std::result::Result<(), Fault> {
    const CHILDREN: i16 = 5;
    const WRONG: Fault = Fault::Invalid("its schema is no tree");
    let (count, kind) = input.list()?;
    if kind != STRUCT {
        return Err(WRONG);
    }
    let mut lacking = vec![1]; // children, of each group that is open
    for element in 0..count {
        let mut children = 0;
        input.fields(|input, id, kind| match (id, kind) {
            (CHILDREN, I32) => input
                .integer()
                .map(|number| children = number)
                .map(|()| true),
            (CHILDREN, _) => Err(WRONG),
            _ => Ok(false),
        })?;
        while lacking.last() == Some(&0) {
            lacking.pop();
        }
        *lacking.last_mut().ok_or(WRONG)? -= 1;
        let children = usize::try_from(children).map_err(|_| WRONG)?;
        if children >= count - element {
            return Err(WRONG);
        }
        if children > 0 {
            lacking.push(children);
        }
        if lacking.len() > MAX_SCHEMA_DEPTH {
            return Err(Fault::Invalid("its columns are nested too deeply"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Header {
    kind: i64,
    uncompressed: i64,
    compressed: i64,
    crc: Option<u32>,
    values: i64,
    encoding: i64,
    definition_encoding: i64,
    repetition_encoding: i64,
    // Of a data page of version 2.
    nulls: i64,
    rows: i64,
    definition_bytes: i64,
    repetition_bytes: i64,
    not_compressed: bool,
}

impl Header {
    /// The header at the start of `bytes`, and its length.
    fn parse(bytes: &[u8]) -> std::result::Result<(Header, usize), Fault> {
        let mut header = Header::default();
        let mut input = Input::new(bytes);
        input.fields(|input, id, kind| {
            match (id, kind) {
                (1, I32) => header.kind = input.integer()?,
                (2, I32) => header.uncompressed = input.integer()?,
                (3, I32) => header.compressed = input.integer()?,
                (4, I32) => header.crc = Some(input.integer()? as u32),
                (5, STRUCT) | (7, STRUCT) | (8, STRUCT) => header.parse_kind(input, id)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok((header, input.position()))
    }

    /// The part of a kind of page: its number is that of the field.
    fn parse_kind(&mut self, input: &mut Input, part: i16) -> std::result::Result<(), Fault> {
        const FALSE: u8 = 2;
        input.fields(|input, id, kind| {
            let number = match (part, id, kind) {
                (8, 7, FALSE) => {
                    self.not_compressed = true;
                    return Ok(false);
                }
                (_, 1, I32) => &mut self.values,
                (5 | 7, 2, I32) | (8, 4, I32) => &mut self.encoding,
                (5, 3, I32) => &mut self.definition_encoding,
                (5, 4, I32) => &mut self.repetition_encoding,
                (8, 2, I32) => &mut self.nulls,
                (8, 3, I32) => &mut self.rows,
                (8, 5, I32) => &mut self.definition_bytes,
                (8, 6, I32) => &mut self.repetition_bytes,
                _ => return Ok(false),
            };
            *number = input.integer()?;
            Ok(true)
        })
    }
}

fn encoding(number: i64) -> Result<Encoding> {
    #[allow(deprecated)]
    let known = match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        4 => Encoding::BIT_PACKED,
        5 => Encoding::DELTA_BINARY_PACKED,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        // A kilobyte of prefixes can stand for gigabytes, and the crate reserves what they say.
        6 | 7 => {
            return Err(refused(
                "its texts have a delta encoding; write it again with plain or dictionary encoding, as pyarrow does"
                    .to_string(),
            ))
        }
        _ => return Err(damaged("a page has an unknown encoding")),
    };
    Ok(known)
}

fn size(number: i64) -> Result<usize> {
    usize::try_from(number).map_err(|_| damaged("a page has a negative size"))
}

fn count(number: i64) -> Result<u32> {
    u32::try_from(number).map_err(|_| damaged("a page has a negative number of values"))
}

fn decompress(codec: Compression, bytes: &[u8], size: usize) -> Result<Vec<u8>> {
    const WRONG: &str = "a page cannot be decompressed";
    let out = match codec {
        _ if size == 0 => Vec::new(), // also if nothing is there at all
        Compression::UNCOMPRESSED => bytes.to_vec(),
        Compression::SNAPPY => {
            // It says at its start how much it is.
            if snap::raw::decompress_len(bytes).ok() != Some(size) {
                return Err(damaged("a page is not as long as its header says"));
            }
            let text = snap::raw::Decoder::new().decompress_vec(bytes);
            text.map_err(|_| damaged(WRONG))?
        }
        Compression::GZIP(_) => {
            let mut out = Vec::new();
            let reader = flate2::read::MultiGzDecoder::new(bytes);
            let read = reader.take(size as u64 + 1).read_to_end(&mut out);
            read.map_err(|_| damaged(WRONG))?;
            out
        }
        Compression::ZSTD(_) => {
            let mut out = vec![0u8; size];
            // SAFETY: both buffers are as long as is said.
            let written = unsafe {
                let to = out.as_mut_ptr().cast();
                let written = ZSTD_decompress(to, size, bytes.as_ptr().cast(), bytes.len());
                (ZSTD_isError(written) == 0).then_some(written)
            };
            out.truncate(written.ok_or_else(|| damaged(WRONG))?);
            out
        }
        other => {
            return Err(refused(format!(
                "its pages are compressed by {}; write it again with snappy, zstd or gzip",
                format!("{other:?}").split('(').next().unwrap_or_default()
            )))
        }
    };
    if out.len() != size {
        return Err(damaged("a page is not as long as its header says"));
    }
    Ok(out)
}

pub struct Pages {
    file: Arc<TableFile>,
    at: u64,
    end: u64,
    codec: Compression,
    next: Option<Header>,
    has_dictionary: bool,
    held_page: usize,
    held_dictionary: usize,
    values_of_row: Arc<AtomicUsize>,
}

impl Pages {
    /// `values_of_row` counts values of the pages that were read since somebody set it to 0: a row has at most
    /// `max_row_values` of the file.
    pub fn new(
        file: Arc<TableFile>,
        column: &ColumnChunkMetaData,
        values_of_row: Arc<AtomicUsize>,
    ) -> Result<Self> {
        // Some writers say 0 where there is none; a page cannot lie there.
        let first = column
            .dictionary_page_offset()
            .filter(|&offset| offset != 0)
            .unwrap_or_else(|| column.data_page_offset());
        let start = u64::try_from(first).ok();
        let length = u64::try_from(column.compressed_size()).ok();
        let range = start.zip(length).and_then(|(start, length)| {
            let end = start.checked_add(length)?;
            (end <= file.bytes).then_some((start, end))
        });
        let (at, end) = range.ok_or_else(|| damaged("a column lies outside of the file"))?;
        Ok(Pages {
            file,
            at,
            end,
            codec: column.compression(),
            next: None,
            has_dictionary: false,
            held_page: 0,
            held_dictionary: 0,
            values_of_row,
        })
    }

    /// The header of the next page, whose body begins at `self.at` then; None at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        if let Some(header) = self.next.take() {
            return Ok(Some(header));
        }
        while self.at < self.end {
            let header = self.read_header()?;
            if header.compressed < 0 || header.compressed as u64 > self.end - self.at {
                return Err(damaged("a page is longer than its column"));
            }
            let larger = header.compressed.max(header.uncompressed);
            self.file.count_expanded(larger as u64)?;
            // Writers make empty pages too, and the crate takes one for the end of the column.
            let is_empty = header.kind != DICTIONARY_PAGE && header.values == 0;
            if header.kind != INDEX_PAGE && !is_empty {
                return Ok(Some(header));
            }
            self.at += header.compressed as u64;
        }
        Ok(None)
    }

    fn read_header(&mut self) -> Result<Header> {
        let left = self.end - self.at;
        let mut window = HEADER_WINDOW;
        loop {
            // All of it, however little is there: a page of nothing takes time, too.
            self.file.count_expanded(window)?;
            let bytes = self.file.read_at(self.at, left.min(window) as usize)?;
            match Header::parse(&bytes) {
                Ok((header, length)) => {
                    self.at += length as u64;
                    return Ok(header);
                }
                Err(Fault::TooShort) if window < left && window < MAX_HEADER_BYTES => window *= 8,
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    fn body(&mut self, header: &Header) -> Result<Vec<u8>> {
        let bytes = self.file.read_at(self.at, size(header.compressed)?)?;
        self.at += bytes.len() as u64;
        if let Some(expected) = header.crc {
            let mut crc = flate2::Crc::new();
            crc.update(&bytes);
            if crc.sum() != expected {
                return Err(damaged("a page has not the checksum that it should have"));
            }
        }
        let uncompressed = size(header.uncompressed)?;
        if header.kind != DATA_PAGE_V2 {
            return decompress(self.codec, &bytes, uncompressed);
        }
        // Its levels stand in front, as they are.
        let levels = size(header.definition_bytes)? + size(header.repetition_bytes)?;
        if levels > bytes.len() || levels > uncompressed {
            return Err(damaged("the levels of a page are longer than the page"));
        }
        let codec = if header.not_compressed {
            Compression::UNCOMPRESSED
        } else {
            self.codec
        };
        let values = decompress(codec, &bytes[levels..], uncompressed - levels)?;
        Ok([&bytes[..levels], &values].concat())
    }

    /// Makes room for a page, in place of the one before.
    fn hold(&mut self, header: &Header) -> Result<()> {
        let page = size(header.uncompressed)?;
        let needed = page.max(size(header.compressed)?);
        if header.kind != DICTIONARY_PAGE {
            return self.file.hold(&mut self.held_page, needed);
        }
        // Each has at least its length, or four bytes of a number.
        let values = size(header.values)?;
        if values > page / 4 {
            return Err(damaged("a dictionary has not as many values as it says"));
        }
        let needed = needed + values * DICTIONARY_ENTRY_BYTES;
        self.file.hold(&mut self.held_dictionary, needed)
    }

    fn count_values(&self, header: &Header) -> Result<u32> {
        let values = count(header.values)?;
        if values > MAX_PAGE_VALUES {
            return Err(refused(format!(
                "a page has {values} values, and {MAX_PAGE_VALUES} are allowed; write it again with smaller pages"
            )));
        }
        if self.values_of_row.fetch_add(values as usize, Relaxed) > self.file.max_row_values {
            return Err(refused(format!(
                "the row has more than {} values",
                self.file.max_row_values
            )));
        }
        Ok(values)
    }

    fn value_encoding(&self, header: &Header) -> Result<Encoding> {
        let encoding = encoding(header.encoding)?;
        let uses_dictionary = matches!(
            encoding,
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY
        );
        if uses_dictionary && header.kind != DICTIONARY_PAGE && !self.has_dictionary {
            return Err(damaged("a page lacks its dictionary"));
        }
        Ok(encoding)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let held = self.held_page + self.held_dictionary;
        self.file.held.fetch_sub(held, Relaxed);
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let encoding_of_values = self.value_encoding(&header)?;
        self.hold(&header)?;
        let page = match header.kind {
            DICTIONARY_PAGE => {
                self.has_dictionary = true;
                Page::DictionaryPage {
                    buf: Bytes::from(self.body(&header)?),
                    num_values: count(header.values)?,
                    encoding: encoding_of_values,
                    is_sorted: false,
                }
            }
            DATA_PAGE => Page::DataPage {
                num_values: self.count_values(&header)?,
                buf: Bytes::from(self.body(&header)?),
                encoding: encoding_of_values,
                def_level_encoding: encoding(header.definition_encoding)?,
                rep_level_encoding: encoding(header.repetition_encoding)?,
                statistics: None,
            },
            DATA_PAGE_V2 => Page::DataPageV2 {
                num_values: self.count_values(&header)?,
                buf: Bytes::from(self.body(&header)?),
                encoding: encoding_of_values,
                num_nulls: count(header.nulls)?,
                num_rows: count(header.rows)?,
                def_levels_byte_len: count(header.definition_bytes)?,
                rep_levels_byte_len: count(header.repetition_bytes)?,
                is_compressed: false,
                statistics: None,
            },
            _ => return Err(damaged("a page is of an unknown kind")),
        };
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.next = self.header()?;
        let Some(header) = &self.next else {
            return Ok(None);
        };
        Ok(Some(PageMetadata {
            num_rows: (header.kind == DATA_PAGE_V2).then_some(size(header.rows)?),
            num_levels: Some(size(header.values)?),
            is_dict: header.kind == DICTIONARY_PAGE,
        }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        if let Some(header) = self.header()? {
            self.at += header.compressed as u64;
        }
        Ok(())
    }
}
