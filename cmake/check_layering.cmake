# Fails when a source includes from a folder that its own folder may not use.
# The allowed folders are those of docs/architecture.md, "Folders".
# Run: cmake -DROOT=<source dir> -P cmake/check_layering.cmake
cmake_minimum_required(VERSION 3.25)

set(allow_common "common")
set(allow_common_rpc "common;common/rpc;protos")
set(allow_common_http "common;common/http")
set(allow_common_metrics "common;common/metrics")
set(allow_common_ops "common;common/http;common/metrics;common/ops")
set(allow_kernels "common;kernels")
set(allow_model "common;model")
set(allow_cluster "common;common/metrics;common/rpc;protos;cluster")
set(base "common;common/metrics;common/rpc;protos;kernels;model;cluster")
set(allow_expert_service "${base};common/ops;expert_service")
set(allow_router_service_gating "${base};router_service/gating")
set(allow_router_service_kv_cache "${base};router_service/kv_cache")
set(allow_router_service_attention
    "${base};router_service/gating;router_service/kv_cache;router_service/attention")
set(allow_router_service_dispatch
    "${base};router_service/gating;router_service/kv_cache;router_service/dispatch")
set(allow_router_service_engine
    "${base};router_service/gating;router_service/kv_cache;router_service/attention;router_service/dispatch;router_service/engine")
set(allow_router_service_scheduler
    "${allow_router_service_engine};router_service/scheduler")
set(allow_router_service
    "${allow_router_service_scheduler};common/ops;router_service")
set(allow_gateway
    "common;common/metrics;common/ops;common/rpc;common/http;protos;model;cluster;gateway;gateway/openai")
set(allow_gateway_openai
    "common;common/metrics;common/http;common/rpc;protos;model;cluster;gateway;gateway/openai")

# The longest folder of this list that starts a path is the path's folder.
set(folders common common/rpc common/http common/metrics common/ops protos kernels model cluster expert_service
    router_service router_service/gating router_service/kv_cache
    router_service/attention router_service/dispatch router_service/engine
    router_service/scheduler gateway tools tests)

function(folder_of path out)
  set(best "")
  foreach(folder IN LISTS folders)
    string(FIND "${path}" "${folder}/" at)
    if(at EQUAL 0)
      set(best "${folder}")
    endif()
  endforeach()
  set(${out} "${best}" PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE sources RELATIVE ${ROOT}
  ${ROOT}/common/*.h ${ROOT}/common/*.cc ${ROOT}/kernels/*.h
  ${ROOT}/kernels/*.cc ${ROOT}/kernels/*.cu ${ROOT}/kernels/*.cuh
  ${ROOT}/model/*.h ${ROOT}/model/*.cc
  ${ROOT}/cluster/*.h ${ROOT}/cluster/*.cc ${ROOT}/expert_service/*.h
  ${ROOT}/expert_service/*.cc ${ROOT}/router_service/*.h
  ${ROOT}/router_service/*.cc ${ROOT}/gateway/*.h ${ROOT}/gateway/*.cc)
set(bad 0)
set(checked 0)
foreach(source IN LISTS sources)
  folder_of(${source} from)
  string(REPLACE "/" "_" key ${from})
  file(STRINGS ${ROOT}/${source} includes REGEX "^[ \t]*#[ \t]*include[ \t]+\"")
  foreach(line IN LISTS includes)
    string(REGEX REPLACE "^[^\"]*\"([^\"]*)\".*" "\\1" target "${line}")
    folder_of(${target} to)
    if(NOT to)
      continue()  # a library's
    endif()
    math(EXPR checked "${checked}+1")
    if(NOT to IN_LIST allow_${key})
      message(SEND_ERROR "${source}: ${from} may not include ${target} (allowed: ${allow_${key}})")
      math(EXPR bad "${bad}+1")
    endif()
  endforeach()
endforeach()
if(bad)
  message(FATAL_ERROR "${bad} includes point the wrong way")
endif()
message(STATUS "layering: ${checked} includes checked")
