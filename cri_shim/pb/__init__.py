"""Generated from protos/cri_shim/pb/api.proto by `make proto`; nothing here but this line is written by hand."""
