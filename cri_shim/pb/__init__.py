"""Generated from protos/ by `make proto`; nothing here but this line is written by hand."""
