// One stream to N: every output takes each beat once, at its own time.
module dp_fork #(
  parameter int WIDTH = 8,
  parameter int N = 2
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [N*WIDTH-1:0] m_data, output logic [N-1:0] m_valid, input logic [N-1:0] m_ready
);
  logic [N-1:0] taken;
  assign m_data = {N{s_data}};
  assign m_valid = {N{s_valid}} & ~taken;
  assign s_ready = &(taken | m_ready);
  always_ff @(posedge clk) begin
    if (rst) taken <= '0;
    else if (s_valid) taken <= s_ready ? '0 : taken | m_ready;
  end
endmodule
