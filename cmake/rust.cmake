# The one Rust crate (tokenizers, chat templates, object stores, HTTP, Parquet) as a static library behind a C interface. One crate only: two Rust
# static libraries in a program clash, since both carry the Rust standard library.
find_program(CARGO cargo REQUIRED)
# One folder for every build directory: the crate takes 7 minutes of one core, and cargo locks the folder itself.
set(LUTHIER_RUST_TARGET_DIR ${CMAKE_SOURCE_DIR}/build/rust)
set(LUTHIER_RUST_LIBRARY ${LUTHIER_RUST_TARGET_DIR}/release/libluthier_rust.a)
file(GLOB LUTHIER_RUST_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/rust/src/*.rs)
add_custom_command(
  OUTPUT ${LUTHIER_RUST_LIBRARY}
  COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${LUTHIER_RUST_TARGET_DIR}
          ${CARGO} build --release --locked --quiet --manifest-path ${CMAKE_SOURCE_DIR}/rust/Cargo.toml
  DEPENDS ${LUTHIER_RUST_SOURCES} ${CMAKE_SOURCE_DIR}/rust/Cargo.toml ${CMAKE_SOURCE_DIR}/rust/Cargo.lock
  COMMENT "Building the Rust crate"
  VERBATIM)
add_custom_target(luthier_rust_build DEPENDS ${LUTHIER_RUST_LIBRARY})
add_library(luthier_rust INTERFACE)
add_library(luthier::rust ALIAS luthier_rust)
add_dependencies(luthier_rust luthier_rust_build)
target_link_libraries(luthier_rust INTERFACE ${LUTHIER_RUST_LIBRARY} PkgConfig::zstd Threads::Threads ${CMAKE_DL_LIBS} m)
