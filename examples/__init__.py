"""Programs that use Sidecast as a library."""
