# SPDX-License-Identifier: Apache-2.0
# cmake --install, and the package that find_package(carousel) finds: docs/library.md. What is installed for programs
# is the component "library", the program itself "program".
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/carousel)
# Of the rooms' own headers only these are for programs. They lie apart, as they name one another from src/.
set(room_headers ${CMAKE_INSTALL_INCLUDEDIR}/carousel/rooms)

# carousel_install_rooms(component rooms...): the targets carousel::<room>, found by carousel-<component>.cmake.
function(carousel_install_rooms component)
  foreach(room ${ARGN})
    set_target_properties(carousel_${room} PROPERTIES EXPORT_NAME ${room})
    install(TARGETS carousel_${room} EXPORT carousel-${component} COMPONENT library)
  endforeach()
  install(EXPORT carousel-${component} NAMESPACE carousel:: DESTINATION ${package_folder} COMPONENT library)
endfunction()

# carousel_install_headers(headers...): of src/, each with its room's name.
function(carousel_install_headers)
  foreach(header ${ARGN})
    get_filename_component(room ${header} DIRECTORY)
    install(FILES ${PROJECT_SOURCE_DIR}/src/${header} DESTINATION ${room_headers}/${room} COMPONENT library)
  endforeach()
endfunction()

carousel_install_rooms(engine public base rope cache eviction attention config engine measure)
carousel_install_rooms(text text)
if(CAROUSEL_WITH_OPENVINO)
  carousel_install_rooms(openvino openvino)
  carousel_install_headers(openvino/openvino_model.h openvino/openvino_tokenizer.h)
  # The program looks for the runtime where it was built.
  set_target_properties(carousel PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS carousel COMPONENT program)
endif()

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
# The number of threads; a policy of one's own, with what its interface names.
carousel_install_headers(base/parallel.h base/aligned_buffer.h rope/rope_spec.h
  cache/block_pool.h cache/block_pools.h cache/block_shape.h cache/block_table.h cache/plane_layout.h
  cache/slab_source.h eviction/policy.h eviction/registry.h)
# Texts and turns.
carousel_install_headers(text/byte_source.h text/date_layout.h text/incremental_detokenizer.h text/prompt_encoder.h
  text/prompt_part.h text/stop_strings.h text/text_mender.h text/text_pieces.h text/turn_format.h)

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/carousel-config.cmake.in
  ${PROJECT_BINARY_DIR}/carousel-config.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/carousel-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/carousel-config.cmake ${PROJECT_BINARY_DIR}/carousel-config-version.cmake
  DESTINATION ${package_folder} COMPONENT library)
