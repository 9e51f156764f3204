"""What people bring: tables, arrays, texts and pictures, with their labels."""
