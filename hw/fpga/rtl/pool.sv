// Maximum or sum of SIZE beats of PE channels, window elements in sequence.
module dp_pool #(
  parameter int PE = 1, SIZE = 4,
  parameter int IB = 8, OB = 8,
  parameter bit SIGNED = 0,
  parameter bit SUM = 0
) (
  input  logic clk, rst,
  input  logic [PE*IB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int W = SIZE > 1 ? $clog2(SIZE) : 1;
  logic [W-1:0] at;
  logic [PE*OB-1:0] best;
  wire last = at == W'(SIZE-1);
  assign s_ready = !last || !m_valid || m_ready;
  wire go = s_valid && s_ready;
  logic [PE*OB-1:0] next;
  for (genvar p = 0; p < PE; p++) begin : g
    wire signed [OB:0] x = {{(OB+1-IB){SIGNED && s_data[p*IB+IB-1]}}, s_data[p*IB +: IB]};
    wire signed [OB:0] b = {SIGNED && best[p*OB+OB-1], best[p*OB +: OB]};
    if (SUM) assign next[p*OB +: OB] = at == '0 ? x[OB-1:0] : OB'(x + b);
    else assign next[p*OB +: OB] = at == '0 || x > b ? x[OB-1:0] : b[OB-1:0];
  end
  always_ff @(posedge clk) begin
    if (go) best <= next;
    if (go && last) m_data <= next;
    if (rst) begin
      at <= '0; m_valid <= 1'b0;
    end else begin
      if (go) at <= last ? '0 : at + 1'b1;
      if (go && last) m_valid <= 1'b1;
      else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
