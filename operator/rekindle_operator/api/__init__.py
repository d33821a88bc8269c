"""A TrainingJob as typed values, and the small rules of its documents."""
