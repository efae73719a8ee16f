// The first N of the PADDED elements of every pixel, one a cycle.
module dp_trim #(
  parameter int WIDTH = 8,
  parameter int N = 3, PADDED = 4
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int W = $clog2(PADDED);
  logic [W-1:0] at;
  wire extra = at >= W'(N);
  assign m_data = s_data;
  assign m_valid = s_valid && !extra;
  assign s_ready = extra || m_ready;
  always_ff @(posedge clk) begin
    if (rst) at <= '0;
    else if (s_valid && s_ready) at <= at == W'(PADDED-1) ? '0 : at + 1'b1;
  end
endmodule
