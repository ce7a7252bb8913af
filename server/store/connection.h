// One connection to the database, with its statements prepared once. Throws SQLite::Exception; the store catches.
#pragma once

#include <SQLiteCpp/SQLiteCpp.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/time/time.h"

namespace luthier {

// Bytes that are no text. Borrowed until the statement has run.
struct Bytes {
  const std::string& value;
};

int64_t ToMicros(absl::Time time);
absl::Time FromMicros(int64_t micros);

// A prepared statement in use. It is reset when this goes: a statement left in the middle of its rows would keep a read
// transaction open, and the WAL would grow.
class Query {
 public:
  explicit Query(SQLite::Statement& statement) : statement_(statement) {}
  Query(const Query&) = delete;
  ~Query() {
    statement_.tryReset();
    statement_.clearBindings();
  }

  // Binds the next parameter. Texts and bytes must outlive the query.
  Query& Add(const std::string& text) { return statement_.bindNoCopy(++parameter_, text), *this; }
  Query& Add(int64_t number) { return statement_.bind(++parameter_, number), *this; }
  Query& Add(std::optional<int64_t> number) { return number ? Add(*number) : (statement_.bind(++parameter_), *this); }
  Query& Add(absl::Time time) { return Add(ToMicros(time)); }
  Query& Add(double number) { return statement_.bind(++parameter_, number), *this; }
  Query& Add(Bytes bytes) {
    return statement_.bindNoCopy(++parameter_, static_cast<const void*>(bytes.value.data()),
                                 static_cast<int>(bytes.value.size())),
           *this;
  }
  template <typename... Values>
  Query& Bind(const Values&... values) {
    (Add(values), ...);
    return *this;
  }

  // The next row; its columns are read from left to right.
  bool Step() {
    column_ = 0;
    return statement_.executeStep();
  }
  std::string Text() { return statement_.getColumn(column_++).getString(); }
  std::string Blob() { return Text(); }  // as many bytes as there are
  int64_t Int() { return statement_.getColumn(column_++).getInt64(); }
  absl::Time Time() { return FromMicros(Int()); }
  double Real() { return statement_.getColumn(column_++).getDouble(); }
  void Skip(int columns) { column_ += columns; }
  bool NextIsNull() const { return statement_.getColumn(column_).isNull(); }

  // Runs a statement without rows; returns how many rows it changed.
  int Run() { return statement_.exec(); }

 private:
  SQLite::Statement& statement_;
  int parameter_ = 0;
  int column_ = 0;
};

class Connection {
 public:
  Connection(const std::string& path, int flags) : database_(path, flags, /*aBusyTimeoutMs=*/5000) {}
  SQLite::Database& database() { return database_; }
  Query Prepare(const std::string& sql) {
    const auto found = statements_.find(sql);
    if (found != statements_.end()) return Query(found->second);
    return Query(statements_.emplace(sql, SQLite::Statement(database_, sql)).first->second);
  }

 private:
  SQLite::Database database_;
  std::unordered_map<std::string, SQLite::Statement> statements_;
};

}  // namespace luthier
