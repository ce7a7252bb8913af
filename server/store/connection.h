// One connection to the database, with its statements prepared once. Throws SQLite::Exception; the store catches.
#pragma once

#include <SQLiteCpp/SQLiteCpp.h>
#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/time/time.h"

namespace luthier {

// Bytes that are no text. Borrowed until the statement has run.
struct Bytes {
  const std::string& value;
};

// Since 1970. Infinite times become the limits of the type, and come back as themselves.
int64_t ToMicros(absl::Time time);
absl::Time FromMicros(int64_t micros);

// A prepared statement in use. It is reset when this goes: a statement left in the middle of its rows would keep a read
// transaction open, and the WAL would grow. SQLite's own functions, since a restart reads a million rows with them.
class Query {
 public:
  explicit Query(sqlite3_stmt* statement) : statement_(statement) {}
  Query(const Query&) = delete;
  ~Query() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }

  // Binds the next parameter. Texts and bytes must outlive the query.
  Query& Add(const std::string& text) {
    return Check(
        sqlite3_bind_text(statement_, ++parameter_, text.data(), static_cast<int>(text.size()), SQLITE_STATIC));
  }
  Query& Add(int64_t number) { return Check(sqlite3_bind_int64(statement_, ++parameter_, number)); }
  Query& Add(std::optional<int64_t> number) {
    return number ? Add(*number) : Check(sqlite3_bind_null(statement_, ++parameter_));
  }
  Query& Add(absl::Time time) { return Add(ToMicros(time)); }
  Query& Add(double number) { return Check(sqlite3_bind_double(statement_, ++parameter_, number)); }
  Query& Add(Bytes bytes) {
    return Check(sqlite3_bind_blob(statement_, ++parameter_, bytes.value.data(), static_cast<int>(bytes.value.size()),
                                   SQLITE_STATIC));
  }
  template <typename... Values>
  Query& Bind(const Values&... values) {
    (Add(values), ...);
    return *this;
  }

  // The next row; its columns are read from left to right.
  bool Step() {
    column_ = 0;
    const int code = sqlite3_step(statement_);
    if (code != SQLITE_DONE && code != SQLITE_ROW) Throw(code);
    return code == SQLITE_ROW;
  }
  std::string Text() {
    const void* const data = sqlite3_column_blob(statement_, column_);
    const auto size = static_cast<size_t>(sqlite3_column_bytes(statement_, column_++));
    return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
  }
  std::string Blob() { return Text(); }  // as many bytes as there are
  int64_t Int() { return sqlite3_column_int64(statement_, column_++); }
  absl::Time Time() { return FromMicros(Int()); }
  double Real() { return sqlite3_column_double(statement_, column_++); }
  void Skip(int columns) { column_ += columns; }
  // Whether the next column is null; it is then behind us.
  bool TakeNull() {
    if (sqlite3_column_type(statement_, column_) != SQLITE_NULL) return false;
    ++column_;
    return true;
  }

  // Runs a statement without rows; returns how many rows it changed.
  int Run() {
    Step();
    return sqlite3_changes(sqlite3_db_handle(statement_));
  }

 private:
  [[noreturn]] void Throw(int code) const { throw SQLite::Exception(sqlite3_db_handle(statement_), code); }
  Query& Check(int code) {
    if (code != SQLITE_OK) Throw(code);
    return *this;
  }

  sqlite3_stmt* const statement_;
  int parameter_ = 0;
  int column_ = 0;
};

class Connection {
 public:
  static constexpr int kBusyMilliseconds = 5000;
  // One thread at a time uses a connection, so SQLite's lock around every column that is read would only cost time.
  Connection(const std::string& path, int flags) : database_(path, flags | SQLite::OPEN_NOMUTEX, kBusyMilliseconds) {}
  SQLite::Database& database() { return database_; }
  Query Prepare(const std::string& sql) {
    Statement& statement = statements_[sql];
    if (statement == nullptr) {
      sqlite3_stmt* prepared = nullptr;
      const int code = sqlite3_prepare_v2(database_.getHandle(), sql.c_str(), -1, &prepared, nullptr);
      if (code != SQLITE_OK) throw SQLite::Exception(database_.getHandle(), code);
      statement.reset(prepared);
    }
    return Query(statement.get());
  }

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

  SQLite::Database database_;
  std::unordered_map<std::string, Statement> statements_;
};

}  // namespace luthier
