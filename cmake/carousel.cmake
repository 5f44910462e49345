# SPDX-License-Identifier: Apache-2.0
# How a room is built: one static library, its tests beside it.

function(carousel_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
                         -Wno-missing-field-initializers)
  # GCC 12 sees overlaps in std::string that are not there (its bug 105651).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-restrict)
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

# carousel_room(name SOURCES ... LINK ...): the library carousel_<name> of src/<name>.
function(carousel_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINK" ${ARGN})
  add_library(carousel_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(carousel_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(carousel_${name} PUBLIC carousel_public ${ROOM_LINK})
  carousel_compile_options(carousel_${name})
endfunction()

# carousel_test(name SOURCES ... LINK ... [LABELS ...] [TIMEOUT seconds]): one GoogleTest program, one CTest
# entry per program (rapidcheck's properties are long; a process each would double the time).
function(carousel_test name)
  cmake_parse_arguments(TEST "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 300)
  endif()
  add_executable(${name} ${TEST_SOURCES})
  target_link_libraries(${name} PRIVATE ${TEST_LINK} GTest::gtest_main GTest::gmock rapidcheck)
  carousel_compile_options(${name})
  # What is tested is optimised in its own library; the tests themselves are not worth minutes of compilation.
  if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
    target_compile_options(${name} PRIVATE -O1)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${TEST_TIMEOUT} LABELS "${TEST_LABELS}")
endfunction()
