"""What hyper-connections cost, measured."""
