"""The experiments of the book: functions of plain parameters that return their figures."""
