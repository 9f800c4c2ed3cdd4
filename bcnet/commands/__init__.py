"""The commands of ``bcnet``, by subject. Heavy imports happen inside the commands, so that help and mistakes answer at once."""
