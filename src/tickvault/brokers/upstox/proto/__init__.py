"""The feed's protobuf messages (generated; `make proto`)."""
