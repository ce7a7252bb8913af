# The three kinds of target in this project, so that every folder declares its own in one call.

# Flags of our own code only: dependencies are SYSTEM and stay quiet.
add_library(luthier_flags INTERFACE)
add_library(luthier::flags ALIAS luthier_flags)
target_compile_options(luthier_flags INTERFACE -Wall -Wextra -Wpedantic -Werror -Wno-missing-field-initializers)
target_include_directories(luthier_flags INTERFACE ${CMAKE_SOURCE_DIR})
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # GCC 12's std::stable_sort uses what GCC 12 deprecates.
  target_compile_options(luthier_flags INTERFACE -Wthread-safety -Wno-deprecated-declarations)
endif()
if(LUTHIER_SANITIZE)
  add_compile_options(-fsanitize=${LUTHIER_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${LUTHIER_SANITIZE})
  # GCC 12 warns inside its own std::regex when sanitizers are on (gcc.gnu.org/PR105562).
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  # Headers of libraries that are built without it must not lay out their classes as if they were: protobuf's maps have
  # two members more where this is defined, and whoever reads one that the library made reads past it.
  add_compile_options(-U__SANITIZE_THREAD__)
endif()

find_program(LUTHIER_CCACHE ccache)
if(LUTHIER_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LUTHIER_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${LUTHIER_CCACHE})
endif()

# luthier_library(<name> SOURCES … PUBLIC … PRIVATE …) makes `luthier_<name>` with the alias `luthier::<name>`.
# Without SOURCES the library is header-only.
function(luthier_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  if(ARG_SOURCES)
    add_library(luthier_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(luthier_${name} PUBLIC ${ARG_PUBLIC} PRIVATE luthier::flags ${ARG_PRIVATE})
    target_include_directories(luthier_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  else()
    add_library(luthier_${name} INTERFACE)
    target_link_libraries(luthier_${name} INTERFACE ${ARG_PUBLIC})
    target_include_directories(luthier_${name} INTERFACE ${CMAKE_SOURCE_DIR})
  endif()
  add_library(luthier::${name} ALIAS luthier_${name})
endfunction()

# luthier_program(<name> SOURCES … LINK …) makes the executable build/<preset>/bin/<name>.
function(luthier_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE luthier::flags ${ARG_LINK})
endfunction()

# luthier_test(<name> SOURCES … LINK … [LABELS …] [TIMEOUT seconds]) makes a GoogleTest program and registers it as one
# ctest. Exit code 77 of a program is reported by ctest as skipped, loudly.
function(luthier_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE luthier::flags GTest::gmock GTest::gtest GTest::gtest_main ${ARG_LINK})
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77 LABELS "${ARG_LABELS}")
endfunction()

# luthier_test_again(<name> <argument>) registers a test's program once more, run with that argument, as <name>_<argument>.
function(luthier_test_again name argument)
  add_test(NAME ${name}_${argument} COMMAND ${name} ${argument} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  get_test_property(${name} TIMEOUT timeout)
  get_test_property(${name} LABELS labels)
  if(NOT labels)
    set(labels "")
  endif()
  set_tests_properties(${name}_${argument} PROPERTIES TIMEOUT ${timeout} SKIP_RETURN_CODE 77 LABELS "${labels}")
endfunction()

# The long variant of a test (`ctest -L long`): the same program with more of what the variable <setting> (NAME=VALUE) counts.
# The rest is arguments of the program.
function(luthier_long_variant name program setting)
  add_test(NAME ${name} COMMAND ${program} ${ARGN} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 14400 LABELS long ENVIRONMENT "${setting}")
endfunction()
