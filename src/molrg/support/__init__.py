"""What every part of the library uses: checks of arguments, devices, files."""
