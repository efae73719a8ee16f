// Simulation only: writes every beat of a stream to a file, for comparison with the reference and for naming deadlocks.
module dp_tap #(
  parameter int WIDTH = 8,
  parameter FILE = "tap.txt"
) (
  input logic clk, rst,
  input logic [WIDTH-1:0] data, input logic valid, ready
);
  int file;
  initial file = $fopen(FILE, "w");
  always_ff @(posedge clk) if (!rst && valid && ready) $fdisplay(file, "%h", data);
  final begin
    if (valid && !ready) $fdisplay(file, "# held");
    if (!valid && ready) $fdisplay(file, "# starved");
    $fclose(file);
  end
endmodule
