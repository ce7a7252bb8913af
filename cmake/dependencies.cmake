# Every dependency from outside is found here, once. Versions, licences and reasons: docs/dependencies.md.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(CLI11 REQUIRED)
find_package(yaml-cpp REQUIRED)
pkg_check_modules(re2 REQUIRED IMPORTED_TARGET re2)

if(LUTHIER_SERVER)
  # Debian 12's gRPC is without CMake files that name its own Protobuf module; newer ones have them. pkg-config has both.
  find_package(Protobuf REQUIRED)
  find_program(PROTOC protoc REQUIRED)
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
  pkg_check_modules(grpcpp REQUIRED IMPORTED_TARGET grpc++>=1.51)
  pkg_check_modules(sqlite3 REQUIRED IMPORTED_TARGET sqlite3>=3.40)
  find_package(SQLiteCpp REQUIRED)
  find_package(prometheus-cpp REQUIRED COMPONENTS core pull)
endif()

if(LUTHIER_TRAINER)
  include(torch)
endif()

if(LUTHIER_TESTS)
  find_package(GTest REQUIRED)
endif()
