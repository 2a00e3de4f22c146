# Finds a CUDA toolkit and enables the language. Sets QUIRE_HAVE_CUDA and says in one line what was found.
#
# Looked for in this order: CUDACXX, nvcc on PATH, /usr/local/cuda, the wheels of PyPI under .cuda/ (the launcher
# puts them there). Only cudart is linked, statically: a binary starts where there is no toolkit, driver or card.
# cuBLASLt and NCCL are opened at run time (kernels/cuda/cublaslt_api.h), so no header of theirs is needed here.
set(QUIRE_HAVE_CUDA OFF)

function(quire_find_nvcc out)
  file(GLOB wheels ${CMAKE_SOURCE_DIR}/.cuda/lib/python3*/site-packages/nvidia/cu13/bin)
  find_program(nvcc nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin ${wheels} NO_CACHE)
  if(DEFINED ENV{CUDACXX} AND EXISTS $ENV{CUDACXX})
    set(nvcc $ENV{CUDACXX})
  endif()
  set(${out} ${nvcc} PARENT_SCOPE)
endfunction()

if(QUIRE_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: left out (QUIRE_CUDA=OFF); --device cuda-host runs its kernels on the host")
else()
  if(NOT CMAKE_CUDA_COMPILER)
    quire_find_nvcc(quire_nvcc)
    if(quire_nvcc)
      set(CMAKE_CUDA_COMPILER ${quire_nvcc})
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    # Always set: CMake 3.25 would take sm_75, and rejects `native` and family names (100f). `90a`, not `90`: plain
    # sm_90 has neither wgmma nor setmaxnreg. `-real` leaves the PTX out; a release adds one `-virtual`.
    set(CMAKE_CUDA_ARCHITECTURES ${QUIRE_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it of nvcc 13
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(QUIRE_HAVE_CUDA ON)
    message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION} at ${CMAKE_CUDA_COMPILER}, for ${CMAKE_CUDA_ARCHITECTURES}")
  elseif(QUIRE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CUDA: QUIRE_CUDA=ON and no nvcc in CUDACXX, PATH, /usr/local/cuda/bin or .cuda/")
  else()
    message(STATUS "CUDA: no toolkit found; --device cuda-host runs its kernels on the host")
  endif()
endif()

if(QUIRE_HAVE_CUDA)
  find_package(CUDAToolkit REQUIRED)
  add_library(quire_cudart INTERFACE)  # the run-time library, statically: nothing of CUDA's is needed to start
  target_link_libraries(quire_cudart INTERFACE CUDA::cudart_static)
  # constexpr functions of src/base (Philox, bf16 rounding) are used by device code too.
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo>")
endif()
