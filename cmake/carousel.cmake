# SPDX-License-Identifier: Apache-2.0
# How a room is built: one static library, its tests beside it.

# The same sources are compiled for several presets and clones; what was compiled before comes from ccache where that
# is installed. Paths inside a clone are told relative to it, so that clones share what they compile.
find_program(CAROUSEL_CCACHE ccache)
if(CAROUSEL_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${CAROUSEL_CCACHE})
endif()

# Highway's targets that this machine's processor cannot run, into the list `result`.
function(carousel_targets_beyond_host result)
  set(beyond "")
  if(EXISTS /proc/cpuinfo AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    file(STRINGS /proc/cpuinfo flags REGEX "^flags" LIMIT_COUNT 1)
    if(NOT flags MATCHES " avx512vnni| avx512_vnni")
      list(APPEND beyond HWY_AVX3_DL)
    endif()
    if(NOT flags MATCHES " avx512f")
      list(APPEND beyond HWY_AVX3)
    endif()
  endif()
  set(${result} ${beyond} PARENT_SCOPE)
endfunction()

function(carousel_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
                         -Wno-missing-field-initializers)
  # GCC 12 sees overlaps and ends in std::string that are not there (its bugs 105651 and 105329).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-restrict -Wno-array-bounds -Wno-stringop-overflow)
  endif()
  if(CAROUSEL_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(CAROUSEL_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${CAROUSEL_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${CAROUSEL_SANITIZE})
  endif()
  if(CAROUSEL_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# Headers that most sources of a kind include cost more than most sources' own lines, so they are compiled once. A source
# still includes all that it uses: a preset with CMAKE_DISABLE_PRECOMPILE_HEADERS compiles without.
set(carousel_standard_headers
    <algorithm> <array> <cmath> <cstdint> <cstdlib> <cstring> <functional> <limits> <map> <memory> <optional> <random>
    <span> <string> <string_view> <utility> <vector> <fmt/format.h>)

# carousel_headers(name [EXECUTABLE] HEADERS ... LINK ...): what targets take by carousel_precompile(target name). They
# must be compiled with the same options; those of EXECUTABLE are programs'.
function(carousel_headers name)
  cmake_parse_arguments(OF "EXECUTABLE" "" "HEADERS;LINK" ${ARGN})
  set(source ${PROJECT_BINARY_DIR}/${name}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "// Only there because a target wants a source.\n")
  add_library(${name} OBJECT ${source})
  target_link_libraries(${name} PRIVATE fmt::fmt ${OF_LINK})
  target_precompile_headers(${name} PRIVATE ${carousel_standard_headers} ${OF_HEADERS})
  if(OF_EXECUTABLE)
    # Programs are compiled as position-independent executables, which the headers must be as well.
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE -fPIE)
  endif()
endfunction()

function(carousel_precompile target headers)
  target_precompile_headers(${target} REUSE_FROM ${headers})
  carousel_show_headers_to_ccache(${target})
endfunction()

# ccache keeps what was compiled with precompiled headers only where it sees that they were used.
function(carousel_show_headers_to_ccache target)
  if(CAROUSEL_CCACHE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -fpch-preprocess)
  endif()
endfunction()

# carousel_room(name SOURCES ... LINK ...): the library carousel_<name> of src/<name>.
function(carousel_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINK" ${ARGN})
  add_library(carousel_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(carousel_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                                              $<INSTALL_INTERFACE:include/carousel/rooms>)
  target_link_libraries(carousel_${name} PUBLIC carousel_public ${ROOM_LINK})
  carousel_compile_options(carousel_${name})
  if(NOT TARGET room_headers)
    carousel_headers(room_headers)
    carousel_compile_options(room_headers)
  endif()
  carousel_precompile(carousel_${name} room_headers)
endfunction()

# For what is not worth minutes of compilation: tests (what they test is optimised in its own library), flags and reports.
function(carousel_light_options target)
  carousel_compile_options(${target})
  if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# Tests are what they are for: under the address sanitizer their own code is neither optimised nor watched for undefined
# behaviour, which makes a third of their compilation. What they test is, in its own library.
function(carousel_test_options target)
  carousel_light_options(${target})
  if(CMAKE_BUILD_TYPE STREQUAL "Debug" AND CAROUSEL_SANITIZE MATCHES "undefined")
    target_compile_options(${target} PRIVATE -O0 -fno-sanitize=undefined)
  endif()
endfunction()

# Tests with vector code of their own: GCC needs its optimiser to see that the immediates of AVX-512 are constants.
function(carousel_vector_tests)
  if(CMAKE_BUILD_TYPE STREQUAL "Debug")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O1 SKIP_PRECOMPILE_HEADERS ON)
  endif()
endfunction()

# carousel_test(name SOURCES ... LINK ... [LABELS ...] [TIMEOUT seconds] [COST seconds]): one GoogleTest program, one CTest
# entry per program (rapidcheck's properties are long; a process each would double the time). The costliest begin first,
# so that no processor waits for one at the end; a cost is given to what takes more than some ten seconds.
function(carousel_test name)
  cmake_parse_arguments(TEST "" "TIMEOUT;COST" "SOURCES;LINK;LABELS" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 300)
  endif()
  add_executable(${name} ${TEST_SOURCES})
  target_link_libraries(${name} PRIVATE ${TEST_LINK} GTest::gtest_main GTest::gmock rapidcheck)
  carousel_test_options(${name})
  if(NOT TARGET test_headers)
    carousel_headers(test_headers EXECUTABLE HEADERS <gtest/gtest.h> <gmock/gmock.h> <rapidcheck/gtest.h>
                     <nlohmann/json.hpp> LINK GTest::gmock rapidcheck nlohmann_json::nlohmann_json)
    carousel_test_options(test_headers)
  endif()
  carousel_precompile(${name} test_headers)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${TEST_TIMEOUT} LABELS "${TEST_LABELS}")
  if(TEST_COST)
    set_tests_properties(${name} PROPERTIES COST ${TEST_COST})
  endif()
endfunction()
