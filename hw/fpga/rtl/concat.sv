// Channels of two streams side by side: per pixel BEATS0 beats of the first, then BEATS1 of the second.
module dp_concat #(
  parameter int WIDTH = 8,
  parameter int BEATS0 = 1,
  parameter int BEATS1 = 1
) (
  input  logic clk, rst,
  input  logic [2*WIDTH-1:0] s_data, input logic [1:0] s_valid, output logic [1:0] s_ready,
  output logic [WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int W = $clog2(BEATS0+BEATS1);
  logic [W-1:0] at;
  wire second = at >= W'(BEATS0);
  assign m_data = second ? s_data[WIDTH +: WIDTH] : s_data[0 +: WIDTH];
  assign m_valid = second ? s_valid[1] : s_valid[0];
  assign s_ready = {second && m_ready, !second && m_ready};
  always_ff @(posedge clk) begin
    if (rst) at <= '0;
    else if (m_valid && m_ready) at <= at == W'(BEATS0+BEATS1-1) ? '0 : at + 1'b1;
  end
endmodule
