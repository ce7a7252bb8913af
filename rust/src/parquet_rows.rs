//! Rows of a Parquet file as JSON lines, behind a C interface; the C side is `lib/dataset/parquet_api.h`.
//!
//! Line N is row N. Of the file, what is in memory is its footer, one page (and dictionary) of each column, and the lines
//! that are handed out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicUsize;
use std::sync::Arc;

use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::columns::{schema_of, write_row, Column, Columns, Line, Schema};
use crate::pages::{check_footer, damaged, refused, Pages, TableFile};
use crate::{caught_quietly, guarded, Failure, LuthierBuffer};

const UNREADABLE: i32 = 2;

const MAGIC: &[u8] = b"PAR1";
const ENCRYPTED_MAGIC: &[u8] = b"PARE";
/// Metadata of a hundred thousand column chunks; in memory it takes many times as much.
const MAX_FOOTER_BYTES: u64 = 16 << 20;
/// What is handed out at a time, up to the row that exceeds it.
const PIECE_BYTES: usize = 64 << 10;

pub struct ParquetRows {
    file: Arc<TableFile>,
    max_row_bytes: usize,
    bytes: u64, // of all lines so far
    opened: Option<Opened>,
    lines: Vec<u8>,
    failure: Option<Failure>, // behind the lines that were handed out last
    at_end: bool,
}

struct Opened {
    metadata: ParquetMetaData,
    schema: Schema,
    columns: Columns, // of the row group before `next_group`
    rows_left: u64,   // of it
    next_group: usize,
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(error) if error.is::<std::io::Error>() => Failure {
                code: UNREADABLE,
                message: format!("the file cannot be read on ({error})"),
            },
            ParquetError::NYI(message) => format!("the Parquet file is not read: {message}").into(),
            ParquetError::General(message) | ParquetError::EOF(message) => broken(&message),
            error => broken(&error.to_string()),
        }
    }
}

fn broken(what: &str) -> Failure {
    Failure::from(format!(
        "the Parquet file is damaged here ({what}); copy or write it again"
    ))
}

fn read_metadata(file: &TableFile) -> Result<ParquetMetaData> {
    // "PAR1", columns, footer, length of the footer in 4 bytes, "PAR1".
    if file.bytes < 12 {
        return Err(damaged("it ends too early"));
    }
    let tail = file.read_at(file.bytes - 8, 8)?;
    if &tail[4..] == ENCRYPTED_MAGIC {
        return Err(refused("it is encrypted".to_string()));
    }
    if &tail[4..] != MAGIC {
        return Err(damaged("its end is missing"));
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > file.bytes - 12 {
        return Err(damaged("its footer is longer than the file"));
    }
    if length > MAX_FOOTER_BYTES {
        return Err(refused(format!(
            "its footer has {length} bytes, and {MAX_FOOTER_BYTES} are allowed; write it again with larger row groups"
        )));
    }
    let footer = file.read_at(file.bytes - 8 - length, length as usize)?;
    check_footer(&footer)?;
    ParquetMetaDataReader::decode_metadata(&footer)
}

/// Each value of a list takes two bytes of JSON. What stands beside lists has room below that.
fn max_values(max_row_bytes: usize) -> usize {
    max_row_bytes / 2 + 1000
}

impl ParquetRows {
    fn new(file: File, max_row_bytes: usize, max_expansion: u64) -> std::io::Result<Self> {
        let max_values = max_values(max_row_bytes);
        Ok(ParquetRows {
            file: Arc::new(TableFile::new(file, max_expansion, max_values)?),
            max_row_bytes,
            bytes: 0,
            opened: None,
            lines: Vec::new(),
            failure: None,
            at_end: false,
        })
    }

    /// Some more lines; none at the end. Nothing comes after a failure.
    fn next(&mut self) -> std::result::Result<&[u8], Failure> {
        self.lines.clear();
        while !self.at_end && self.lines.len() < PIECE_BYTES {
            let start = self.lines.len();
            // The crate panics on some damages.
            let row = caught_quietly(|| self.next_row());
            match row.unwrap_or_else(|| Err(damaged("its pages contradict each other"))) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    self.lines.truncate(start);
                    self.failure = Some(error.into());
                }
            }
            self.at_end = true;
            self.opened = None;
        }
        match self.failure.take_if(|_| self.lines.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(&self.lines),
        }
    }

    /// Appends a line; false at the end.
    fn next_row(&mut self) -> Result<bool> {
        if self.opened.is_none() {
            self.opened = Some(Opened::new(&self.file)?);
        }
        let opened = self.opened.as_mut().expect("was opened");
        while opened.rows_left == 0 {
            opened.check_group_ends()?;
            if opened.next_group == opened.metadata.num_row_groups() {
                return Ok(false);
            }
            opened.open_group(&self.file)?;
        }
        let start = self.lines.len();
        opened.write_row(&mut self.lines, self.max_row_bytes)?;
        self.lines.push(b'\n');
        self.bytes += (self.lines.len() - start) as u64;
        if self.bytes > self.file.max_expanded {
            return Err(refused(format!(
                "its rows have more than {} bytes, for {} of the file; give them as JSON lines if that is no accident",
                self.file.max_expanded, self.file.bytes
            )));
        }
        Ok(true)
    }
}

impl Opened {
    fn new(file: &TableFile) -> Result<Self> {
        let metadata = read_metadata(file)?;
        let schema = schema_of(metadata.file_metadata().schema_descr().root_schema())?;
        Ok(Opened {
            metadata,
            schema,
            columns: Vec::new(),
            rows_left: 0,
            next_group: 0,
        })
    }

    fn open_group(&mut self, file: &Arc<TableFile>) -> Result<()> {
        let group = self.metadata.row_group(self.next_group);
        let rows = u64::try_from(group.num_rows());
        self.rows_left = rows.map_err(|_| damaged("a row group has a negative number of rows"))?;
        self.next_group += 1;
        self.columns.clear();
        self.columns.resize_with(group.num_columns(), || None);
        for &leaf in &self.schema.leaves {
            if leaf >= group.num_columns() {
                return Err(damaged("a row group lacks a column"));
            }
            let chunk = group.column(leaf);
            let values = Arc::new(AtomicUsize::new(0));
            let pages = Pages::new(file.clone(), chunk, values.clone())?;
            self.columns[leaf] = Some(Column::new(chunk.column_descr_ptr(), pages, values)?);
        }
        Ok(())
    }

    /// A footer that speaks of fewer rows than there are would lose some without a word.
    fn check_group_ends(&mut self) -> Result<()> {
        for column in self.columns.iter_mut().flatten() {
            if column.next_row()?.is_some() {
                return Err(damaged("a column has more rows than its footer says"));
            }
        }
        Ok(())
    }

    fn write_row(&mut self, lines: &mut Vec<u8>, max_bytes: usize) -> Result<()> {
        self.rows_left -= 1;
        let mut values = 0;
        for column in self.columns.iter_mut().flatten() {
            let Some(of_column) = column.next_row()? else {
                return Err(damaged("a column has fewer rows than its footer says"));
            };
            values += of_column;
            if values > max_values(max_bytes) {
                return Err(refused(format!(
                    "the row has more than {} values",
                    max_values(max_bytes)
                )));
            }
        }
        // One byte more than a row may have says that it has too many.
        write_row(
            &self.schema,
            &mut self.columns,
            &mut Line::new(lines, max_bytes + 1),
        )?;
        if !self.columns.iter().flatten().all(Column::is_at_end_of_row) {
            return Err(damaged("its columns have not the same rows"));
        }
        Ok(())
    }
}

/// `path` is not empty. An error says only that the file cannot be opened. `max_row_bytes`: of a longer line, what is behind one
/// byte more is left out.
#[no_mangle]
pub unsafe extern "C" fn luthier_parquet_open(
    path: *const u8,
    path_len: usize,
    max_row_bytes: usize,
    max_expansion: u64,
    out: *mut *mut ParquetRows,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = OsStr::from_bytes(std::slice::from_raw_parts(path, path_len));
        let file = File::open(path).map_err(|e| e.to_string())?;
        let rows = ParquetRows::new(file, max_row_bytes, max_expansion);
        *out = Box::into_raw(Box::new(rows.map_err(|e| e.to_string())?));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_parquet_free(rows: *mut ParquetRows) {
    if !rows.is_null() {
        drop(Box::from_raw(rows));
    }
}

/// The next lines, which are valid until the next call; `len` is 0 at the end.
#[no_mangle]
pub unsafe extern "C" fn luthier_parquet_next(
    rows: *mut ParquetRows,
    data: *mut *const u8,
    len: *mut usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let lines = (*rows).next()?;
        (*data, *len) = (lines.as_ptr(), lines.len());
        Ok(())
    })
}
